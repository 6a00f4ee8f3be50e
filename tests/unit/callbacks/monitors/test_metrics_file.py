"""`metrics.jsonl`: a row per iteration with what that iteration logged, whole after a resume."""

from __future__ import annotations

import json

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.monitors.metrics_file import MetricsFile
from tests.helpers.make import MadeData, MadeModule, made_trainer, train


class Logs(L.Callback):
    """`always` in every iteration, `once` in the first alone."""

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        pl_module.log("always", float(10 + trainer.current_epoch), on_epoch=True, batch_size=1)
        if trainer.current_epoch == 0:
            pl_module.log("once", 5.0, on_epoch=True, batch_size=1)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


EXPECTED = [
    {"iteration": 0, "always": 10.0, "once": 5.0},
    {"iteration": 1, "always": 11.0},  # not the last value of `once` again
    {"iteration": 2, "always": 12.0},
]


def test_a_row_has_what_its_iteration_logged_and_no_older_value(tmp_path):
    train(tmp_path, Logs(), MetricsFile(), iterations=3)
    assert rows(tmp_path) == EXPECTED


def test_a_resumed_run_goes_on_in_the_same_file(tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False)
    train(tmp_path, Logs(), MetricsFile(), saving, iterations=2, enable_checkpointing=True)
    (tmp_path / "metrics.jsonl").unlink()
    trainer = made_trainer(tmp_path, [Logs(), MetricsFile()], iterations=3)
    trainer.fit(MadeModule(), datamodule=MadeData(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert rows(tmp_path) == EXPECTED
