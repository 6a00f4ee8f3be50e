"""The perturbations there are, and from the conf's list (`sim.perturb`) to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from vla_rl.errors import UserError, did_you_mean, no_such_choice
from vla_rl.sim.perturb.base import Perturbation
from vla_rl.sim.perturb.pictures import Blur, Noise, Occlusion
from vla_rl.sim.perturb.wording import Wording
from vla_rl.sim.perturb.world import CameraPose, InitialState, Light

PERTURBATIONS: dict[str, type[Perturbation]] = {
    "blur": Blur,
    "occlusion": Occlusion,
    "noise": Noise,
    "camera_pose": CameraPose,
    "light": Light,
    "initial_state": InitialState,
    "wording": Wording,
}
EXAMPLE = "sim.perturb=[{blur: {kernel: 5}}, {occlusion: {share: 0.5}}]"


def parse_perturbations(given: Any) -> dict[str, Perturbation]:
    """By name, in the order given.

    Args:
        given: a list of names, and of dicts of one name and its options: `["light", {"blur": {"kernel": 5}}]`.

    Raises:
        UserError: anything else.
    """
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise UserError(f"sim.perturb must be a list of perturbations, got {given!r} ({EXAMPLE})")
    found: dict[str, Perturbation] = {}
    for item in given:
        name, options = _name_and_options(item)
        if name in found:
            raise UserError(f"sim.perturb names '{name}' twice; once is allowed ({EXAMPLE})")
        found[name] = _make(name, options)
    return found


def _name_and_options(item: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(item, str):
        item = {item: {}}
    if not isinstance(item, dict) or len(item) != 1 or not all(isinstance(options, dict) for options in item.values()):
        raise UserError(
            f"an item of sim.perturb must be a name, or one name with its options, got {item!r} ({EXAMPLE})"
        )
    ((name, options),) = item.items()
    if name not in PERTURBATIONS:
        raise UserError(no_such_choice(name, PERTURBATIONS, "perturbation").rpartition(" (")[0] + f" ({EXAMPLE})")
    return name, options


def _make(name: str, options: dict[str, Any]) -> Perturbation:
    kind = PERTURBATIONS[name]
    defaults = {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type]
    inside = ", ".join(f"{option}: {value}" for option, value in defaults.items())
    example = f"(sim.perturb=[{{{name}: {{{inside}}}}}])"
    for option in options:
        if option not in defaults:
            allowed = f" Options: {', '.join(defaults) or 'none'}"
            raise UserError(f"{name} has no option '{option}'{did_you_mean(str(option), defaults)}{allowed} {example}")
    made = kind(**options)
    try:
        made.check()
    except UserError as error:  # the override that fixes it is the whole list
        raise UserError(f"{name}: {str(error).rpartition(' (')[0]} {example}") from None
    return made
