"""Where scalars go: one TensorBoard file per run, and what `logger=` adds."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence

import lightning as L
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.monitors.metrics_file import MetricsFile
from callbacks.monitors.run_plot import RunPlot
from tests.helpers.toy import ToyPolicy, ToyPool
from vla_rl.config.compose import compose
from vla_rl.errors import UserError
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.training.grpo_module import GRPOModule
from vla_rl.training.loggers import run_loggers
from vla_rl.training.trainer import build_trainer


def toy_run(folder, *overrides: str, callbacks: Sequence[L.Callback] = ()) -> None:
    """Measure, two iterations, measure: as the program does."""
    config = compose([
        "conf=pcm_object_tiny", "iterations=2", "rollout.groups=2", "rollout.group_size=4", "grpo.minibatches=2",
        "evaluation.sampled_episodes=2", "evaluation.greedy_episodes=2", *overrides,
    ])  # fmt: skip
    policy = ToyPolicy()
    data = RolloutDataModule(
        ToyPool(), policy, rollout=config.rollout, grpo=config.grpo, evaluation=config.evaluation, seed=1
    )
    trainer = build_trainer(config, folder, list(callbacks))
    module = GRPOModule(policy, config.grpo, config.optim, temperature=1.0)
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data, verbose=False)


def test_a_run_has_one_event_file_with_all_its_stages(tmp_path):
    toy_run(tmp_path)
    (file,) = (tmp_path / "tensorboard").glob("events.*")
    events = EventAccumulator(str(file))
    events.Reload()
    assert len(events.Scalars("heldout/greedy_success")) == 2
    assert len(events.Scalars("rollout/success")) == 2
    (config,) = events.Tensors("config/text_summary")
    assert "  group_size: 4\n" in config.tensor_proto.string_val[0].decode()
    assert {path.name for path in tmp_path.iterdir()} == {"tensorboard"}


def test_csv_has_a_row_for_every_iteration(tmp_path):
    toy_run(tmp_path, "logger=csv")
    with open(tmp_path / "csv" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row["rollout/success"]]) == 2
    assert len([row for row in rows if row["heldout/sampled_success"]]) == 2
    assert "group_size: 4" in (tmp_path / "csv" / "hparams.yaml").read_text()


def test_without_the_package_one_line_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="^logger=wandb needs .*: pip install wandb"):
        run_loggers(compose(["conf=pcm_object_tiny", "logger=wandb"]), tmp_path)


def test_wandb_keeps_an_offline_run_in_the_run_folder(tmp_path):
    pytest.importorskip("wandb", reason="optional: pip install wandb")
    toy_run(tmp_path, "logger=wandb", "logger.offline=true", callbacks=[MetricsFile(), RunPlot()])
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert {path.name.split("_")[0] for path in run.glob("files/media/images/figures/*")} == {"success", "cost"}
