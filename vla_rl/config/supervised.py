"""What supervised training (`vla_rl.sft`) and reinforcement learning (`vla_rl.fit`) use of a config; what the one or
the other would not use is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from vla_rl.config.compose import compose, given_keys
from vla_rl.config.schema import SUPERVISED, Config
from vla_rl.errors import UserError

SAMPLING = ("policy.noise_level", "policy.noisy_steps", "policy.denoising_steps")  # of a flow policy that acts


def compose_supervised(argv: list[str]) -> Config:
    """As `compose`, for supervised training.

    Raises:
        UserError: as `compose`; a value that supervised training does not use, no demonstrations, or no checkpoints.

    Example:
        >>> compose_supervised(["conf=sft_object_tiny", "mask=pcm"])
        Traceback (most recent call last):
        vla_rl.errors.UserError: supervised training does not use mask; leave it out: mask=null
    """
    config = compose(argv)
    if unused := dict(_unused(config)):
        resets = " ".join(f"{key}={default}" for key, default in unused.items())
        instead = f"leave it out: {resets}" if len(unused) < 4 else "begin with a conf of its own: conf=sft_object_tiny"
        raise UserError(f"supervised training does not use {', '.join(unused)}; {instead}")
    if acting := [key for key in given_keys(argv) if key in SAMPLING]:
        raise UserError(
            f"supervised training does not use {', '.join(acting)}, which no checkpoint keeps: leave it out, and give "
            "it where the policy acts"
        )
    if config.sft.demos is None:
        raise UserError("no demonstrations given: sft.demos=FILE, an .npz file from python -m vla_rl.record")
    if config.callbacks.get("checkpoint") is None:
        raise UserError(
            "supervised training would save nothing without its checkpoints: "
            "callbacks.checkpoint._target_=callbacks.Checkpoint"
        )
    return config


def compose_reinforcement(argv: list[str]) -> Config:
    """As `compose`, for reinforcement learning.

    Raises:
        UserError: as `compose`, or for a value of supervised training, which is not used.
    """
    config = compose(argv)
    if unused := dict(_differing(config.sft, Config().sft, "sft")):
        resets = " ".join(f"{key}={default}" for key, default in unused.items())
        raise UserError(f"{', '.join(unused)} is for python -m vla_rl.sft, not for vla_rl.fit; leave it out: {resets}")
    return config


def _unused(config: Config) -> Iterator[tuple[str, str]]:
    """The values that differ from the schema's where supervised training does not look, each with the schema's."""
    default = Config()
    for name in (f.name for f in fields(Config) if f.name not in SUPERVISED):
        yield from _differing(getattr(config, name), getattr(default, name), name)
    yield from _differing(config.optim.max_skipped_steps, default.optim.max_skipped_steps, "optim.max_skipped_steps")


def _differing(value: Any, default: Any, key: str) -> Iterator[tuple[str, str]]:
    if is_dataclass(default):
        for field in fields(default):
            yield from _differing(getattr(value, field.name), getattr(default, field.name), f"{key}.{field.name}")
    elif value != default:
        shown = list(default) if isinstance(default, tuple) else "null" if default is None else default
        yield key, str(shown).replace(" ", "")
