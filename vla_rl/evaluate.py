"""`python -m vla_rl.evaluate conf=pcm_object_tiny policy.checkpoint=FOLDER`: success on held-out initial states.

Prints one JSON line last.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import lightning as L

from vla_rl.build import build, check
from vla_rl.compose import compose
from vla_rl.data import RolloutDataModule
from vla_rl.entry import run_entry
from vla_rl.fit import measure
from vla_rl.module import GRPOModule
from vla_rl.trainer import build_trainer, interruptible


def main(argv: list[str]) -> None:
    config = compose(argv)
    check(config)
    L.seed_everything(config.seed, verbose=False)
    with tempfile.TemporaryDirectory() as folder, closing(build(config.sim, "sim")) as pool:
        trainer = build_trainer(config, Path(folder), callbacks=[])
        policy = build(config.policy, "policy")
        data = RolloutDataModule(
            pool, policy, rollout=config.rollout, grpo=config.grpo, evaluation=config.evaluation, seed=config.seed
        )
        module = GRPOModule(policy, config.grpo, config.optim, config.rollout.temperature)
        with interruptible(trainer):
            rates = measure("checkpoint", trainer, module, data)
    print(json.dumps({decoding: asdict(rate) for decoding, rate in rates.items()}))


if __name__ == "__main__":
    run_entry(main, __doc__)
