"""`python -m vla_rl.fit` from start to end in the real simulator: what it prints, writes, logs, and that it repeats."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.masks.pcm import PCM
from callbacks.monitors.diagnostics import Diagnostics
from callbacks.monitors.memory import ActivationMemory
from callbacks.monitors.metrics_file import MetricsFile
from callbacks.policytrim.callback import PolicyTrim
from tests.helpers import make, tiny_fit, trim_fit
from tests.helpers.results import MEASURED, rows
from tests.helpers.toy import ToyPolicy, ToyPool
from tests.helpers.toy_fit import Fork
from vla_rl.config.compose import compose
from vla_rl.fit import main
from vla_rl.functional.phases import PHASES
from vla_rl.policy import load_policy
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.run.cli import run_entry
from vla_rl.run.provenance import source_state, versions
from vla_rl.training.grpo_module import GRPOModule
from vla_rl.training.trainer import build_trainer

EVALUATION = ["evaluation.sampled_episodes=2", "evaluation.greedy_episodes=2", "evaluation.every_iterations=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, str]:
    """The run folder and what was printed."""
    folder = tmp_path_factory.mktemp("fit") / "run"
    return folder, tiny_fit.fit(folder, *EVALUATION)


def test_it_prints_success_before_and_after_and_a_line_per_iteration(run):
    folder, printed = run
    rate = r"0\.000 \[0\.000, 0\.658\] \(0/2\)"  # nobody can succeed; 0.658: Wilson's upper bound for 0 of 2
    shares = r"\(simulate \d+% infer \d+% preprocess \d+% update \d+% idle \d+%\)"
    # 4 episodes of 3 and of 8 chunks
    iteration = rf"success 0\.00  chunks 12/32  rollout \d+\.\ds  update \d+\.\ds  {shares}"
    interval = r"0\.00 \[0\.00, 0\.66\]"
    expected = [
        f"run folder {folder}",
        f"before training: held-out success, sampled: {rate}",
        f"before training: held-out success, greedy: {rate}",
        f"iteration 1/2  {iteration}",
        f"iteration 2/2  {iteration}",
        f"after training: held-out success, sampled: {rate}",
        f"after training: held-out success, greedy: {rate}",
        "run pcm_object_tiny, seed 1",
        f"  held out  sampled {interval} -> {interval}, greedy {interval} -> {interval}",
        r"  rollouts  2 iterations, success 0\.00 in the first and 0\.00 in the last",
        r"  chunks    24 trained on, 64 executed \(38%\)",
        r"  time      \d+\.\d min in all, \d+\.\d min in iterations: (simulate|infer|update) \d+%.*",
        r"  memory    host \d+\.\d GB.*",
        f"  look at   tensorboard --logdir {folder}",
        f"summary {folder}/summary.json",
    ]
    for line, pattern in zip(printed.splitlines(), expected, strict=True):
        assert re.fullmatch(pattern, line)


def test_the_run_folder_is_complete(run):
    folder, _ = run
    top = {"config.yaml", "versions.json", "metrics.jsonl", "summary.json", "checkpoints", "policy", "figures"}
    assert {path.name for path in folder.iterdir()} == top | {"tensorboard", "success_before.json", "videos", ".lock"}
    names = ["best.ckpt", "iteration-1.ckpt", "iteration-2.ckpt", "last.ckpt"]  # the first one is the best: a tie
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == names
    assert json.loads((folder / "versions.json").read_text()) == versions() | source_state()
    for name in ("phase_allocation", "divergence", "success", "cost"):
        assert imread(folder / "figures" / f"{name}.png").std() > 0.05  # something is drawn on the white


def test_its_config_file_composes_to_the_same_config(run):
    folder, _ = run
    argv = [*tiny_fit.ARGUMENTS, *EVALUATION, f"run_dir={folder}"]
    assert compose([f"conf={folder}/config.yaml"]) == compose(argv)


def test_summary(run):
    folder, _ = run
    summary = json.loads((folder / "summary.json").read_text())
    high = pytest.approx(0.6576, abs=1e-4)  # Wilson's: z^2 / (2 + z^2), z = 1.96
    nobody = {"rate": 0.0, "successes": 0, "episodes": 2, "wilson_low": 0.0, "wilson_high": high}
    both = {"sampled": nobody, "greedy": nobody}
    assert summary.pop("success_before") == both
    assert summary.pop("success_after") == both
    assert summary.pop("seconds") > sum(summary["rollout_s"]) + sum(summary["update_s"])
    assert summary == {
        "conf": "pcm_object_tiny",
        "seed": 1,
        "iterations": 2,
        "rollout_s": [row["time/rollout_s"] for row in rows(folder)],
        "update_s": [row["time/update_s"] for row in rows(folder)],
        "chunks_real": [32, 32],  # 4 episodes of 64 steps in chunks of 8
        "chunks_kept": [12, 12],  # of each, 3
        "versions": versions(),
    }


def test_rollout_and_update_agree_before_anything_is_learnt(run):
    for row in rows(run[0]):
        # rows are scored in other batches than they were sampled in: rounding of float32, no more
        assert 0 <= row["train/first_log_ratio_abs"] < 1e-5
        assert row["train/log_ratio_abs"] > 1e-4  # the second step has something to differ by


def test_the_trained_policy_loads_and_the_checkpoint_holds_the_same(run):
    folder, _ = run
    trained = load_policy(str(folder / "policy")).state_dict()
    shipped = load_policy("shipped:object_tiny").state_dict()
    assert trained.keys() == shipped.keys()
    assert any(not torch.equal(trained[name], shipped[name]) for name in trained)
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 1  # counts from 0
    assert checkpoint["state_dict"]
    for name, value in checkpoint["state_dict"].items():
        assert torch.equal(value, trained[name.removeprefix("policy.")])


def test_the_same_seed_repeats_the_run_whatever_the_workers(run, tmp_path):
    folder, _ = run
    argv = [*tiny_fit.ARGUMENTS, *EVALUATION, f"run_dir={tmp_path / 'run'}", "sim.workers=1"]
    again = Fork(lambda: run_entry(main, argv), tmp_path)  # it has imported everything already
    assert again.wait() == 0, again.errors
    for name, value in load_file(folder / "policy" / "model.safetensors").items():
        assert torch.equal(value, load_file(tmp_path / "run" / "policy" / "model.safetensors")[name])
    timeless = [[{tag: value for tag, value in row.items() if not tag.startswith(MEASURED)} for row in rows(of)]
                for of in (folder, tmp_path / "run")]  # fmt: skip
    assert timeless[0] == timeless[1]
    assert len(timeless[0][0]) > 20


# ------------------------------------------------------------------------------------------- the dictionary of metrics


def documented_tags() -> set[str]:
    """The first column of the table of metrics in docs/watching.md."""
    page = (tiny_fit.ROOT / "docs" / "watching.md").read_text()
    section = page.split("\n## Every scalar\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    tags = [tag for cell in cells for tag in re.findall("`(.+?)`", cell)]
    only_on_a_gpu = set() if torch.cuda.is_available() else {"memory/gpu_peak_mb"}
    windows = ("1", "2")  # of the toy's chunk of 2 steps
    named = {tag.replace("<phase>", p).replace("<window>", w) for tag in tags for p in PHASES for w in windows}
    return named - only_on_a_gpu


def tags(folder: Path) -> set[str]:
    return set().union(*rows(folder)) - {"iteration"}


def toy_run(folder: Path) -> set[str]:
    """Tags of a run in which episodes succeed."""
    config = compose(["conf=pcm_object_tiny", "iterations=1", "rollout.groups=4", "grpo.minibatches=2"])
    config.rollout.train_init_states = (0, 20)
    policy = ToyPolicy()
    data = RolloutDataModule(
        ToyPool(), policy, rollout=config.rollout, grpo=config.grpo, evaluation=config.evaluation, seed=1
    )
    trainer = build_trainer(config, folder, [PCM(budget=2), Diagnostics(), ActivationMemory(), MetricsFile()])
    trainer.fit(GRPOModule(policy, config.grpo, config.optim, temperature=1.0), datamodule=data)
    return tags(folder)


def made_run(folder: Path) -> set[str]:
    """Tags of a run in which mixed groups visit all phases."""
    folder.mkdir()
    make.train(folder, PCM(budget=2), MetricsFile())
    return tags(folder)


def trimmed_run(folder: Path) -> set[str]:
    """Tags of a run with both stages of PolicyTrim."""
    trim_fit.fit(folder, PolicyTrim(extend_iterations=1, kl_coef=0.1, **trim_fit.BOTH))
    return tags(folder)


def test_every_tag_is_documented_and_every_documented_tag_is_written(run, tmp_path):
    written = tags(run[0]) | toy_run(tmp_path / "toy") | made_run(tmp_path / "made") | trimmed_run(tmp_path / "trim")
    assert written == documented_tags()


def test_tensorboard_has_the_same_scalars_and_the_figures(run):
    folder, _ = run
    assert len(list((folder / "tensorboard").glob("events.*"))) == 1  # of three stages
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) - {"epoch"} == tags(folder)  # Lightning adds `epoch`
    assert set(events.Tags()["images"]) == {
        f"figures/{name}" for name in ("phase_allocation", "divergence", "success", "cost")
    }
    for tag in tags(folder) - {"heldout/sampled_success", "heldout/greedy_success"}:  # these also before and after
        assert [e.value for e in events.Scalars(tag)] == pytest.approx([row[tag] for row in rows(folder)])
    assert len(events.Scalars("heldout/greedy_success")) == 1 + 2 + 1
