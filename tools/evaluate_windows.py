"""Success, steps and calls of a policy at each window, on the same held-out episodes.

    python tools/evaluate_windows.py --windows 8,12,16 conf=policytrim_object_tiny_h16 [policy.checkpoint=FOLDER]

Prints a line for each window, and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import closing
from pathlib import Path

import lightning as L

from vla_rl.config.compose import compose
from vla_rl.config.instantiate import build, check
from vla_rl.config.schema import Config
from vla_rl.errors import UserError
from vla_rl.evaluation.windows import WindowResult, measure_windows
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.run.cli import run_entry
from vla_rl.training.grpo_module import GRPOModule
from vla_rl.training.trainer import build_trainer


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", required=True, help="control steps executed of each chunk: 8,12,16")
    parser.add_argument("--episodes", type=int, default=60, help="held out, for each window")
    parser.add_argument("--greedy", action="store_true", help="instead of sampled")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="conf= and any other value")
    args = parser.parse_intermixed_args(argv)
    config = compose(args.overrides)
    check(config)
    L.seed_everything(config.seed, verbose=False)
    with tempfile.TemporaryDirectory() as folder, closing(build(config.sim, "sim")) as pool:
        policy = build(config.policy, "policy")
        windows = checked_windows(args.windows, policy.chunk_steps)
        data = RolloutDataModule(
            pool, policy, rollout=config.rollout, grpo=config.grpo, evaluation=config.evaluation, seed=config.seed
        )
        data.trainer = trainer = build_trainer(config, Path(folder), callbacks=[])
        module = WindowMeasurement(config, data, args.episodes, "greedy" if args.greedy else "sampled")
        trainer.test(module, dataloaders=windows, verbose=False)
    if trainer.is_global_zero:
        for result in module.results:
            print(result)
        print(json.dumps([result.to_dict() for result in module.results]))


class WindowMeasurement(GRPOModule):
    """Measures a window after the other, for `Trainer.test`: Lightning brings devices and ranks."""

    def __init__(self, config: Config, data: RolloutDataModule, episodes: int, decoding: str) -> None:
        super().__init__(data.policy, config.grpo, config.optim, config.rollout.temperature)
        self.data, self.episodes, self.decoding = data, episodes, decoding
        self.results: list[WindowResult] = []

    def test_step(self, window: int, batch_idx: int) -> None:
        self.results += measure_windows(self.data, [window], self.episodes, self.decoding)


def checked_windows(text: str, chunk_steps: int) -> list[int]:
    """`8,12` -> [8, 12]; refuses what the policy does not decide."""
    parts = text.split(",")
    if not all(part.isdecimal() and 1 <= int(part) <= chunk_steps for part in parts):
        raise UserError(f"--windows {text}: the policy decides {chunk_steps} control steps at a time: "
                        f"--windows {max(1, chunk_steps // 2)},{chunk_steps}")  # fmt: skip
    return [int(part) for part in parts]


if __name__ == "__main__":
    run_entry(main, __doc__)
