"""What a run leaves to go on from: `checkpoints/` and `policy/`, whole at any time."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from callbacks import checkpoint
from callbacks.checkpoint import Checkpoint
from tests.helpers.make import MadeData, MadeModule, made_trainer
from vla_rl.errors import RunError
from vla_rl.policy import load_policy, save_trained

LORA = {"r": 2, "alpha": 2}


class Stop(Exception):
    pass


class Change(L.Callback):
    """Writes the iteration's number into a trained weight; raises at the beginning of iteration `stop_at`."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if trainer.current_epoch == self.stop_at:
            raise Stop

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        with torch.no_grad():
            first_trained(pl_module.policy)[1].fill_(trainer.current_epoch + 1)


def first_trained(policy) -> tuple[str, torch.Tensor]:
    return next((name, p) for name, p in policy.named_parameters() if p.requires_grad)


def checkpoint_names(folder) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def run(folder, *, lora=None, iterations=1, every_iterations=1, stop_at=None) -> MadeModule:
    module = MadeModule()
    module.policy = load_policy("shipped:object_tiny", lora=lora)
    callbacks = [Change(stop_at), Checkpoint(every_iterations)]
    made_trainer(folder, callbacks, iterations=iterations, enable_checkpointing=True).fit(module, datamodule=MadeData())
    return module


def written(folder, **options) -> tuple[float, float]:
    """The changed weight as it is in `policy/` and in the checkpoint."""
    policy = load_policy(**{"checkpoint": str(folder / "policy")} | options)
    name, value = first_trained(policy)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state[f"policy.{name}"], value)
    return float(value.detach().flatten()[0])


def test_the_last_iteration_is_what_is_left(tmp_path):
    run(tmp_path, iterations=2)
    assert written(tmp_path) == 2.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "policy"]
    assert checkpoint_names(tmp_path) == ["iteration-1.ckpt", "iteration-2.ckpt", "last.ckpt"]


def test_there_is_a_policy_before_the_first_iteration_ends(tmp_path):
    with pytest.raises(Stop):
        run(tmp_path, stop_at=0)
    shipped = float(first_trained(load_policy("shipped:object_tiny"))[1].detach().flatten()[0])
    assert written(tmp_path) == shipped


def test_a_run_that_fails_leaves_the_last_iteration_that_was_due(tmp_path):
    with pytest.raises(Stop):
        run(tmp_path, iterations=9, every_iterations=2, stop_at=5)
    assert written(tmp_path) == 4.0  # 2 and 4 were due, 5 iterations had ended


def test_with_lora_the_adapters_alone_are_written(tmp_path):
    run(tmp_path, lora=LORA)
    assert {path.name for path in (tmp_path / "policy").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    options = {"checkpoint": "shipped:object_tiny", "lora": LORA, "adapter": str(tmp_path / "policy")}
    assert written(tmp_path, **options) == 1.0


def test_a_folder_is_swapped_whole_or_not_at_all(tmp_path, monkeypatch):
    module = run(tmp_path)

    def half(policy, folder, state) -> None:
        save_trained(policy, folder, state)
        (folder / "config.json").rename(folder / "half.json")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_trained", half)
    trainer = made_trainer(tmp_path, [Change(), Checkpoint()], enable_checkpointing=True)
    with pytest.raises(
        RunError, match=rf"after iteration 0 \(disk full\).*when there is room again, resume={tmp_path}"
    ):
        trainer.fit(module, datamodule=MadeData())
    assert float(first_trained(load_policy(str(tmp_path / "policy")))[1].detach().flatten()[0]) == 1.0
    monkeypatch.undo()
    trainer = made_trainer(tmp_path, [Change(stop_at=0), Checkpoint()], enable_checkpointing=True)
    with pytest.raises(Stop):
        trainer.fit(module, datamodule=MadeData())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "policy"]  # and no half one beside it
    assert not (tmp_path / "policy" / "half.json").exists()


class Measures(L.Callback):
    """Logs held-out success: what `successes` says, iteration by iteration."""

    def __init__(self, successes) -> None:
        self.successes = successes

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        trainer.callback_metrics.clear()
        if (success := self.successes[trainer.current_epoch]) is not None:
            pl_module.log("heldout/sampled_success", success, on_step=False, on_epoch=True, batch_size=1)


def test_the_last_ones_stay_and_the_best(tmp_path):
    module = MadeModule()
    module.policy = torch.nn.Linear(1, 1)  # a policy of one's own
    callbacks = [Measures([0.25, None, 0.75, 0.5, 0.75, None]), Checkpoint(every_iterations=2, keep=1)]
    trainer = made_trainer(tmp_path, callbacks, iterations=6, enable_checkpointing=True)
    trainer.fit(module, datamodule=MadeData())
    assert checkpoint_names(tmp_path) == ["best.ckpt", "iteration-3.ckpt", "iteration-6.ckpt", "last.ckpt"]
    folder = tmp_path / "checkpoints"
    assert (
        folder / "best.ckpt"
    ).readlink().name == "iteration-3.ckpt"  # not due, but the best; as good later is not better
    assert (folder / "last.ckpt").readlink().name == "iteration-6.ckpt"


@pytest.mark.parametrize("option", ["every_iterations", "keep"])
def test_numbers_are_checked(option):
    with pytest.raises(ValueError, match=f"callbacks.checkpoint.{option}="):
        Checkpoint(**{option: 0})
