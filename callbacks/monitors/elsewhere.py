"""Success in another setting of the simulators than the one that is trained in, before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L

from vla_rl.checks import check_choice, check_range
from vla_rl.config.instantiate import build
from vla_rl.distributed.collectives import gather_lists
from vla_rl.errors import UserError
from vla_rl.functional.statistics import SuccessRate
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.datamodule import RolloutDataModule, check_policy
from vla_rl.rollout.epoch import HeldoutBatch
from vla_rl.rollout.plan import check_init_states, heldout_episodes
from vla_rl.rollout.trainer_state import data_of
from vla_rl.run.folder import write_json
from vla_rl.run.summary import ELSEWHERE
from vla_rl.types import SimulatorPool


class SuccessElsewhere(RolloutCallback):
    """Measures; changes nothing. One episode of each initial state, in simulators that start and end with it.

    Prints a line before and one after training, writes `elsewhere.json`, and logs `elsewhere/<decoding>_success`.

    Args:
        sim: what is different there: options of the run's simulators, `{placement_noise_m: 0.02}`.
        init_states: half-open range, of every task.
        decoding: `greedy` or `sampled`.

    Raises:
        UserError: for a value outside its range, or, before anything is written, for simulators that do not exist or
            do not fit the policy.
    """

    def __init__(self, sim: Mapping[str, Any], init_states: Sequence[int], decoding: str = "greedy") -> None:
        if not isinstance(sim, Mapping) or not sim:
            raise UserError(
                "callbacks.elsewhere.sim must be options of the simulators that are different there, got "
                f"{sim!r} (callbacks.elsewhere.sim.horizon=400)"
            )
        check_range("callbacks.elsewhere.init_states", init_states, "[40,50]")
        check_choice("callbacks.elsewhere.decoding", decoding, ("greedy", "sampled"))
        self.sim, self.init_states, self.decoding = dict(sim), tuple(init_states), decoding
        self.before: SuccessRate | None = None

    def check_run(self, data: RolloutDataModule, callbacks: Sequence[L.Callback]) -> None:
        with closing(self._pool(data)) as pool:
            check_policy(pool, data.policy)
            key = "callbacks.elsewhere.init_states"
            given = f"{key}={list(self.init_states)}"
            check_init_states(pool, given, self.init_states[1], remedy=f"{key}=[0,{pool.init_states}]")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.before is None:  # a resumed run has it in its checkpoint
            self.before = self._measure("before training", trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.before is None:  # iterations=0
            return
        after = self._measure("after training", trainer)
        if trainer.is_global_zero:
            rates = {"before": asdict(self.before), "after": asdict(after)}
            what = {"sim": self.sim, "init_states": list(self.init_states), "decoding": self.decoding}
            write_json(Path(trainer.default_root_dir) / ELSEWHERE, what | rates)

    def _measure(self, when: str, trainer: L.Trainer) -> SuccessRate:
        data = data_of(trainer)
        first, end = self.init_states
        with closing(self._pool(data)) as pool:
            episodes = heldout_episodes(pool.tasks, (first, end), (end - first) * len(pool.tasks), data.seed)
            trajectories, _ = data.run(HeldoutBatch(self.decoding, episodes), pool)
        succeeded = gather_lists([t.success for t in trajectories], trainer)
        rate = SuccessRate.of(sum(succeeded), len(episodes))
        if trainer.is_global_zero:
            there = ", ".join(f"{name}={value}" for name, value in self.sim.items())
            print(f"{when}: success elsewhere ({there}), {self.decoding}: {rate}", flush=True)
        for logger in trainer.loggers:
            step = max(0, trainer.fit_loop.total_batch_idx)  # that of the iteration's scalars
            logger.log_metrics({f"elsewhere/{self.decoding}_success": rate.rate}, step)
        return rate

    def _pool(self, data: RolloutDataModule) -> SimulatorPool:
        assert data.sim is not None, "the program that makes the data module says what its simulators were built from"
        try:
            return build(dict(data.sim) | self.sim, "callbacks.elsewhere.sim")
        except UserError as e:  # of a world that has no such option, perhaps, in the place of the conf's
            raise UserError(f"{e}; or leave it out: callbacks.elsewhere=null") from e

    def state_dict(self) -> dict[str, Any]:
        return {"before": None if self.before is None else asdict(self.before)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before = state_dict["before"]
        self.before = None if before is None else SuccessRate(**before)
