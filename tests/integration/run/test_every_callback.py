"""Every shipped callback runs in one process, under ddp, under fsdp2 and with asynchronous rollouts, on the toy world.

All callbacks that go together are in one run: a table of modes, not of pairs.
"""

from __future__ import annotations

import json

import pytest

import callbacks
from tests.helpers import toy_fit
from tests.helpers.results import rows
from vla_rl import evaluate
from vla_rl.config.compose import compose

SLOTS = {  # beside those that the conf fills
    "phases": "callbacks.PhasePlot",  # the toy's runs leave out its slot and the next one's, as drawing takes long
    "curves": "callbacks.RunPlot",
    "augment": "callbacks.Augment",
    "diagnostics": "callbacks.Diagnostics",
    "memory": "callbacks.ActivationMemory",
    "videos": "callbacks.Videos",
    "before_after": "callbacks.BeforeAfter",
    "credit": "callbacks.CreditKept",
    "elsewhere": "callbacks.SuccessElsewhere",
    "trim_report": "callbacks.TrimReport",
    "trace": "callbacks.Trace",
    # masks behind each other: what is left in the end is nobody's choice, but each of them runs
    "padded": "callbacks.FullPadded",
    "single_phase": "callbacks.SinglePhase",
    "entropy": "callbacks.EntropyMask",
    "advantage": "callbacks.AdvantageMask",
    "critic_choice": "callbacks.CriticChoice",
    "global_advantage": "callbacks.GlobalAdvantage",
    "global": "callbacks.GlobalPCM",
    "score_norm": "callbacks.ScoreNorm",
    "random": "callbacks.RandomMask",
    "random_padded": "callbacks.RandomPadded",
}
PARTS = {"Budget", "ChunkMask", "Critic", "GlobalMask", "StepBaseline", "WeightedMask"}  # of others; in no slot
# a run has one source of advantages: critic/ and test_distillation.py in callbacks/ run these
OTHERS = {"Distillation", "HeadCritic"}
ARGUMENTS = [
    *("iterations=2", "rollout.groups=3", "mask=pcm", "mask.budget=3", "mask.refresh_every=1"),
    *("reward=policytrim", "reward.ratios=[0.5,1.0]", "reward.extend_iterations=1", "reward.baseline_episodes=4"),
    *("critic=separate", "critic.steps=5", "grpo.advantage=gae", "grpo.group_filter=keep"),
    *(f"callbacks.{slot}._target_={target}" for slot, target in SLOTS.items()),
    *("callbacks.trim_report.episodes=2", "callbacks.diagnostics.every_iterations=1", "callbacks.trace.iteration=2"),
    *("callbacks.elsewhere.sim.slots=3", "callbacks.elsewhere.init_states=[50,53]"),
    *(
        f"callbacks.{slot}.budget=5"
        for slot in (
            "single_phase",
            "entropy",
            "advantage",
            "critic_choice",
            "global",
            "global_advantage",
            "score_norm",
            "random",
            "random_padded",
        )
    ),
]

MODES = {
    "one process": (1, []),
    "ddp": (2, ["trainer.strategy=ddp"]),
    "fsdp2": (2, ["trainer.strategy=fsdp2"]),
    "asynchronous": (1, ["rollout.asynchronous=true", "callbacks.trace=null"]),
}


def test_the_table_has_every_shipped_callback():
    config = compose([*toy_fit.ARGUMENTS, *ARGUMENTS])
    nodes = [config.mask, config.reward, config.critic, *config.callbacks.values()]
    targets = {node["_target_"].removeprefix("callbacks.") for node in nodes if node}
    assert set(callbacks.MODULES) - targets == PARTS | OTHERS


@pytest.mark.parametrize("mode", MODES)
def test_all_of_them_run(no_pixels, tmp_path, mode):
    ranks, overrides = MODES[mode]
    programs = toy_fit.start_ranks(tmp_path / "run", ranks, *ARGUMENTS, *overrides)
    codes = [program.wait() for program in programs]
    errors = "\n".join(program.errors for program in programs)
    assert codes == [0] * ranks, errors
    assert not [line for line in errors.splitlines() if line and "Initializing distributed" not in line]
    logged = rows(tmp_path / "run")
    assert len(logged) == 2
    kinds = {tag.partition("/")[0] for tag in logged[-1]}
    assert kinds >= {"pcm", "policytrim", "critic", "diag", "memory", "split", "phase", "chunks", "train"}
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left >= {"checkpoints", "policy", "figures", "videos", "windows.json", "elsewhere.json", "summary.json"}
    assert ("trace.json" in left) == (mode != "asynchronous")


def test_without_iterations_they_measure_and_end(no_pixels, tmp_path):
    program = toy_fit.run(tmp_path / "run", *ARGUMENTS, "iterations=0")
    assert "after training: held-out success, greedy" in program.printed
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["iterations"] == 0


EVALUATION = [
    *("conf=pcm_object_tiny", "policy._target_=tests.helpers.toy.ToyPolicy", "sim._target_=tests.helpers.toy.ToyPool"),
    *("evaluation.sampled_episodes=5", "decoding=sampled", "rollout.temperature=1.6"),
]


def test_an_evaluation_under_fsdp2_finds_what_one_process_finds(tmp_path):
    found = []
    for ranks, strategy in ((1, "auto"), (2, "fsdp2")):
        folder = tmp_path / strategy
        options = dict(arguments=EVALUATION, main=evaluate.main)
        programs = toy_fit.start_ranks(folder, ranks, f"trainer.strategy={strategy}", **options)
        assert [program.wait() for program in programs] == [0] * ranks, programs[0].errors
        report = json.loads((folder / "report.json").read_text())
        found.append([(episode["success"], episode["steps"]) for episode in report["episodes"]])
    assert len(found[0]) == 5
    assert found[0] == found[1]
