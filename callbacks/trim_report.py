"""What PolicyTrim changed: success, steps and calls at each window before and after training, as lines and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from callbacks.budget import check_count
from callbacks.policytrim import PolicyTrim
from callbacks.run_figures import save_figures
from callbacks.trim_figures import draw_reward, draw_steps, draw_windows
from vla_rl.distributed import gather_lists
from vla_rl.run import write_json
from vla_rl.windows import WindowResult, measure_windows


class TrimReport(L.Callback):
    """Measures; changes nothing. Writes `windows.json`, and draws `figures/steps`, `windows` and `trim_reward`.

    Without PolicyTrim (`reward=none`, to compare) it reports on the whole chunk.

    Args:
        episodes: held out and sampled, for each window, before training and after it.
    """

    def __init__(self, episodes: int = 60) -> None:
        check_count("episodes", episodes, "episode", "callbacks.trim_report.episodes=60")
        self.episodes = episodes
        self.before: list[WindowResult] = []
        # of the last iteration's successes, those of all ranks: S, reward, penalty
        self._scores: list[tuple[float, float, float]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.before:  # a resumed run has it in its checkpoint
            self.before = self._measure("before", trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        own, trim = [], _trim(trainer)
        for group in trainer.train_dataloader.groups if trim and trim.trimming else ():
            for t, penalty in zip(group.trajectories, trim.reduction.terms(group)[1].tolist(), strict=True):
                if t.success:
                    own.append((t.steps, t.reward, penalty))
        self._scores = gather_lists(own, trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        after = self._measure("after", trainer)
        if not trainer.is_global_zero:
            return
        results = {"before": self.before, "after": after}
        content = {when: [result.to_dict() for result in found] for when, found in results.items()}
        write_json(Path(trainer.default_root_dir) / "windows.json", content)
        figures = {"steps": draw_steps(self.before[0], after[-1]), "windows": draw_windows(results)}
        history = trim.history if (trim := _trim(trainer)) else []
        if any("reward_without_penalty" in row for row in history):
            figures["trim_reward"] = draw_reward(history, self._scores)
        save_figures(figures, trainer)

    def _measure(self, when: str, trainer: L.Trainer) -> list[WindowResult]:
        data, trim = trainer.datamodule, _trim(trainer)
        found = measure_windows(data, trim.windows if trim else [data.policy.chunk_steps], self.episodes)
        if trainer.is_global_zero:
            for result in found:
                print(f"{when} training: held-out, sampled, {result}", flush=True)
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"before": [result.to_dict() for result in self.before], "scores": self._scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = [WindowResult.from_dict(content) for content in state_dict["before"]]
        self._scores = state_dict["scores"]


def _trim(trainer: L.Trainer) -> PolicyTrim | None:
    return next((callback for callback in trainer.callbacks if isinstance(callback, PolicyTrim)), None)
