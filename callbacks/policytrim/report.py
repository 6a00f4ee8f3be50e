"""What PolicyTrim changed: success, steps and calls at each window before, between and after its stages, as figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from matplotlib.figure import Figure

from callbacks.monitors.save_figures import save_figures
from callbacks.policytrim.callback import PolicyTrim
from callbacks.policytrim.figures import draw_reward, draw_steps, draw_windows
from vla_rl.checks import check_count
from vla_rl.distributed.collectives import gather_lists
from vla_rl.evaluation.windows import WindowResult, measure_windows
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.trainer_state import callbacks_of, data_of, epoch_of
from vla_rl.run.folder import write_json

BEFORE, EXTENDED, AFTER = "before training", "after stage 1", "after training"


class TrimReport(RolloutCallback):
    """Measures; changes nothing. Writes `windows.json`, and draws `figures/steps`, `windows` and `trim_reward`.

    Without PolicyTrim (`reward=none`, to compare) it reports on the whole chunk.

    Args:
        episodes: held out and sampled, for each window, each time.
    """

    def __init__(self, episodes: int = 60) -> None:
        check_count("callbacks.trim_report.episodes", episodes, 60)
        self.episodes = episodes
        self.results: dict[str, list[WindowResult]] = {}  # by when they were measured
        # of the last iteration's successes, those of all ranks: S, reward, penalty
        self._scores: list[tuple[float, float, float]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if BEFORE not in self.results:  # a resumed run has it in its checkpoint
            self._measure(BEFORE, trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trim = _trim(trainer)
        if trim and trim.trimming and trim.extended and EXTENDED not in self.results:
            self._measure(EXTENDED, trainer)  # now and not when stage 1 ended, which may be when training ends
        reduction = trim.reduction if trim and trim.trimming else None
        own: list[tuple[float, float, float]] = []
        for group in epoch_of(trainer).groups:
            if reduction is None:
                break
            for t, penalty in zip(group.trajectories, reduction.terms(group)[1].tolist(), strict=True):
                if t.success:
                    own.append((t.steps, t.reward, penalty))
        self._scores = gather_lists(own, trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if BEFORE not in self.results:  # iterations=0
            return
        self._measure(AFTER, trainer)
        if not trainer.is_global_zero:
            return
        write_json(Path(trainer.default_root_dir) / "windows.json", self.state_dict()["results"])
        save_figures(lambda: self._figures(trainer), trainer)

    def _figures(self, trainer: L.Trainer) -> dict[str, Figure]:
        before, after = self.results[BEFORE][0], self.results[AFTER][-1]
        figures = {"steps": draw_steps(before, after), "windows": draw_windows(self.results)}
        history = trim.history if (trim := _trim(trainer)) else []
        if any("reward_without_penalty" in row for row in history):
            figures["trim_reward"] = draw_reward(history, self._scores)
        return figures

    def _measure(self, when: str, trainer: L.Trainer) -> None:
        data, trim = data_of(trainer), _trim(trainer)
        self.results[when] = measure_windows(data, trim.windows if trim else [data.policy.chunk_steps], self.episodes)
        if trainer.is_global_zero:
            for result in self.results[when]:
                print(f"{when}: held-out, sampled, {result}", flush=True)

    def state_dict(self) -> dict[str, Any]:
        results = {when: [result.to_dict() for result in found] for when, found in self.results.items()}
        return {"results": results, "scores": self._scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.results = {
            when: [WindowResult.from_dict(content) for content in found]
            for when, found in state_dict["results"].items()
        }
        self._scores = state_dict["scores"]


def _trim(trainer: L.Trainer) -> PolicyTrim | None:
    return next((callback for callback in callbacks_of(trainer) if isinstance(callback, PolicyTrim)), None)
