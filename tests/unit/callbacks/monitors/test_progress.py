"""What a run shows while it goes on: a bar in a terminal, lines anywhere else."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr

import pytest
from tqdm import tqdm

from callbacks.monitors.progress import RolloutProgress
from callbacks.monitors.timing import Timing
from tests.helpers.toy import ToyPolicy, ToyPool
from vla_rl.config.compose import compose
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.training.grpo_module import GRPOModule
from vla_rl.training.trainer import build_trainer

NUMBERS = r"success [01]\.\d\d  chunks \d+/\d+  rollout \d+\.\ds  update \d+\.\ds"
SHARES = r"  \(simulate \d+% infer \d+% preprocess 0% update \d+% idle \d+%\)"  # the toy policy has no preprocessing


def toy_run(folder, *, disabled: bool = False, timed: bool = False, shown: bool = True) -> None:
    """Two iterations of 2 groups of 3, then 4 + 2 held-out episodes."""
    config = compose([
        "conf=pcm_object_tiny", "iterations=2", "rollout.groups=2", "rollout.group_size=3", "grpo.minibatches=2",
        "evaluation.sampled_episodes=4", "evaluation.greedy_episodes=2",
    ])  # fmt: skip
    policy, progress = ToyPolicy(), RolloutProgress()
    data = RolloutDataModule(
        ToyPool(), policy, rollout=config.rollout, grpo=config.grpo, evaluation=config.evaluation, seed=1
    )
    trainer = build_trainer(config, folder, [Timing()] * timed + [progress] * shown)
    if disabled:
        progress.disable()
    module = GRPOModule(policy, config.grpo, config.optim, temperature=1.0)
    trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data, verbose=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(tmp_path, monkeypatch):
    """A function that returns all that a run writes to a terminal, redrawn at every change, however soon."""
    monkeypatch.setattr(
        "callbacks.monitors.progress.tqdm", lambda *args, **options: tqdm(*args, mininterval=0, **options)
    )

    def run(**options) -> str:
        with redirect_stderr(Terminal()) as shown:
            toy_run(tmp_path, **options)
        return shown.getvalue()

    return run


def test_one_line_per_iteration_where_there_is_no_terminal(tmp_path, capsys):
    toy_run(tmp_path)
    printed = capsys.readouterr()
    assert re.fullmatch(rf"iteration 1/2  {NUMBERS}\niteration 2/2  {NUMBERS}\n", printed.out)
    assert "it/s" not in printed.err
    assert "iteration/s" not in printed.err


def test_with_timing_the_line_says_where_the_seconds_went(tmp_path, capsys):
    toy_run(tmp_path, timed=True)
    assert re.fullmatch(rf"(iteration [12]/2  {NUMBERS}{SHARES}\n){{2}}", capsys.readouterr().out)


def test_the_shares_are_of_the_iteration():
    seconds = {"simulate": 50.0, "infer": 20.0, "preprocess": 4.0, "update": 16.0, "idle": 10.0}
    metrics = {
        "rollout/success": 0.5,
        "chunks/kept": 1.0,
        "chunks/real": 2.0,
        "time/rollout_s": 74.0,
        "time/update_s": 16.0,
        "time/iteration_s": 100.0,
    } | {f"split/{part}_s": value for part, value in seconds.items()}
    line = RolloutProgress.line(metrics)
    assert line.endswith("update 16.0s  (simulate 50% infer 20% preprocess 4% update 16% idle 10%)")


def test_the_line_reads_the_logged_tags():
    metrics = {
        "rollout/success": 0.456,
        "chunks/kept": 384.0,
        "chunks/real": 1029.0,
        "time/rollout_s": 61.24,
        "time/update_s": 17.0,
    }
    assert RolloutProgress.line(metrics) == "success 0.46  chunks 384/1029  rollout 61.2s  update 17.0s"


def test_a_terminal_gets_one_bar_that_moves_once_per_iteration(terminal, capsys):
    drawn = terminal().split("\r")
    assert capsys.readouterr().out == ""
    for iteration in (0, 1):
        of_it = [text for text in drawn if f" {iteration}/2 [" in text]
        ended = [int(match[1]) for text in of_it if (match := re.match(r"rollouts \d/(\d):", text))]
        assert sorted(set(ended)) == [1, 2, 3, 4, 5, 6]  # episodes, each as it ends
        assert [text[:10] for text in of_it if text.startswith("update")] == ["update 1/2", "update 2/2"]
    last = [text for text in drawn if "iteration" in text][-1]
    assert re.search(rf"2/2 \[.*{NUMBERS}", last)


def test_each_heldout_decoding_has_a_bar_that_goes_away(terminal):
    drawn = terminal()
    assert re.search(r"held-out, sampled: 100%\|#+\| 4/4", drawn)
    assert re.search(r"held-out, greedy: 100%\|#+\| 2/2", drawn)
    assert re.search(r"\r +\r$", drawn)  # the last one has wiped itself


def test_without_the_callback_nothing_is_shown(terminal, capsys):
    assert terminal(shown=False) == ""
    assert capsys.readouterr().out == ""


def test_disabled_it_says_nothing(terminal, capsys):
    assert terminal(disabled=True) == ""
    assert capsys.readouterr().out == ""
