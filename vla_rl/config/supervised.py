"""What supervised training (`vla_rl.sft`) and reinforcement learning (`vla_rl.fit`) use of a config; what the one or
the other would not use is refused."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from vla_rl.config.compose import compose, conf_keys, given_keys, is_inside
from vla_rl.config.schema import SUPERVISED, Config
from vla_rl.errors import UserError

NOT_SUPERVISED = (*(f.name for f in fields(Config) if f.name not in SUPERVISED), "optim.max_skipped_steps")
SAMPLING = ("policy.noise_level", "policy.noisy_steps", "policy.denoising_steps")  # of a flow policy that acts


def compose_supervised(argv: list[str]) -> Config:
    """As `compose`, for supervised training.

    Raises:
        UserError: as `compose`; a value that supervised training does not use, no demonstrations, or no checkpoints.

    Example:
        >>> compose_supervised(["conf=sft_object_tiny", "mask=pcm"])
        Traceback (most recent call last):
        vla_rl.errors.UserError: supervised training does not use mask; leave it out
    """
    config = compose(argv)
    if unused := _unused(config, argv, NOT_SUPERVISED):
        instead = _without(unused) if len(unused) < 4 else "begin with a conf of its own: conf=sft_object_tiny"
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
    if unused := _unused(config, argv, ["sft"]):
        named = ", ".join(unused)
        raise UserError(f"{named} is for python -m vla_rl.sft, not for vla_rl.fit; {_without(unused)}")
    return config


def _unused(config: Config, argv: list[str], sections: Iterable[str]) -> dict[str, str | None]:
    """The values in sections where nobody looks that differ from the schema's, or are given as they are there; each
    with the schema's where the conf sets another, so that it has to be given."""
    set_by_conf, given = conf_keys(argv), given_keys(argv)
    unused: dict[str, str | None] = {}
    for key, value, usual in (leaf for section in sections for leaf in _leaves(config, Config(), section)):
        in_conf = any(is_inside(other, key) for other in set_by_conf)
        asked = value is not None and not in_conf and any(is_inside(other, key) for other in given)
        if value != usual or asked:
            unused[key] = _shown(usual) if in_conf else None
    return unused


def _without(unused: dict[str, str | None]) -> str:
    resets = [f"{key}={usual}" for key, usual in unused.items() if usual is not None]
    return f"leave it out: {' '.join(resets)}" if resets else "leave it out"


def _leaves(config: Any, default: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """The values at a key and below it, each with its key and the default's."""
    value, usual = (functools.reduce(getattr, key.split("."), tree) for tree in (config, default))
    if not is_dataclass(usual):
        yield key, value, usual
        return
    for field in fields(usual):
        yield from _leaves(config, default, f"{key}.{field.name}")


def _shown(value: Any) -> str:
    shown = list(value) if isinstance(value, tuple) else "null" if value is None else value
    return str(shown).replace(" ", "")
