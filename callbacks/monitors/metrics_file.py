"""`metrics.jsonl` in the run folder: one line per iteration with every logged scalar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L

from vla_rl.run.folder import atomic_write


class MetricsFile(L.Callback):
    """Keeps the rows in the checkpoint too, so that a resumed run's file is whole."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning keeps the last value of a tag; what an iteration does not log must not look as if it did
        trainer.callback_metrics.clear()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        row = {"iteration": trainer.current_epoch}
        self.rows.append(row | {name: float(value) for name, value in sorted(trainer.callback_metrics.items())})
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "metrics.jsonl"
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            atomic_write(path, lambda part: part.write_text(text, encoding="utf-8"))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
