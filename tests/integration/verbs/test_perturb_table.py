"""`perturb=table` of `vla_rl.evaluate`, with toy simulators: each perturbation against none, on the same episodes."""

from __future__ import annotations

import json

import torch

from tests.helpers.toy import ToyPool
from vla_rl import evaluate
from vla_rl.errors import UserError
from vla_rl.sim.perturb.registry import PERTURBATIONS

HERE = "tests.integration.verbs.test_perturb_table"


class HarderToy(ToyPool):
    """Whoever is occluded does nothing, and nobody understands another wording."""

    open_pools = 0  # whose workers run

    def __init__(self, perturb: list[str] | tuple[()] = ()) -> None:
        super().__init__()
        self.occluded, self.reworded = "occlusion" in perturb, "wording" in perturb

    def start(self, slot, episode):
        HarderToy.open_pools += not self.started
        assert HarderToy.open_pools == 1, "the pool before still holds its memory"
        if self.reworded and len(self.started) == 3:
            raise UserError("unknown words")
        super().start(slot, episode)

    def step(self, slot, command_LA):
        super().step(slot, torch.zeros_like(command_LA) if self.occluded else command_LA)

    def close(self):
        HarderToy.open_pools -= bool(self.started)
        self.started = []


def test_a_table_of_perturbations(tmp_path, capsys):
    simulators = f"sim={{_target_: {HERE}.HarderToy}}"
    toy = "policy={_target_: tests.helpers.toy.ToyPolicy}"
    argv = ["conf=pcm_object_tiny", "perturb=table", simulators, toy, "trainer=cpu", "init_states=[0,8]"]
    evaluate.main([*argv, f"run_dir={tmp_path / 'run'}", "videos.first=0", "videos.failures=0"])
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    clean, *others = report["checkpoints"]
    assert [clean["label"], *(arm["label"] for arm in others)] == [
        "clean",
        *(name for name in PERTURBATIONS if name != "wording"),
    ]
    assert "wording was not run: unknown words" in report["remarks"]
    successes = clean["overall"]["successes"]
    assert successes > 0
    for test in report["against_clean"]:
        assert test["lost"] == (successes if test["label"] == "occlusion" else 0)
        assert test["gained"] == 0
    row = f"| occlusion | 0.000 [0.000, 0.194] 0/16 | -{successes / 16:.3f}"
    assert row in (tmp_path / "run" / "report.md").read_text()
    assert "occlusion against clean on the same episodes: -" in capsys.readouterr().out
