"""`Budget`: how many chunks of a trajectory a mask may keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_rl.errors import UserError

KINDS = ("chunks", "fraction", "knee")


class Budget:
    """A number of chunks, a fraction of a trajectory's chunks, or a fraction that the mask finds out (`knee`).

    Args:
        option: `12` or `{chunks: 12}`; `{fraction: 0.19}`; `{knee: true}`.
        knee: whether the mask can find a knee.

    Raises:
        ValueError: for anything else.

    Example:
        >>> Budget({"fraction": 0.25}).of(16), Budget(12).of(16)
        (4, 12)
    """

    def __init__(self, option: int | Mapping[str, Any], *, knee: bool = False) -> None:
        kind, value = _kind_and_value(option)
        self.chunks: int | None = None
        self.fraction = 1.0  # of a trajectory's chunks; counts where `chunks` is None
        self.follows_knee = kind == "knee"
        if kind == "chunks":
            check_count("budget", value, "chunk", "mask.budget=12")
            self.chunks = value
        elif kind == "fraction":
            if not isinstance(value, float | int) or isinstance(value, bool) or not 0 < value <= 1:
                raise ValueError(
                    f"budget.fraction must be above 0 and at most 1, got {value!r} (mask.budget.fraction=0.19)"
                )
            self.fraction = float(value)
        elif value is not True:
            raise ValueError(f"budget.knee can only be true, got {value!r} (mask.budget.knee=true, or mask.budget=12)")
        elif not knee:
            raise ValueError("only a mask that scores phases can look for the knee of their curve (mask=pcm)")

    def of(self, chunks: int) -> int:
        """Chunks to keep of a trajectory that has `chunks`; may be more than there are."""
        return self.chunks if self.chunks is not None else max(1, round(self.fraction * chunks))

    def check(self, longest: int) -> None:
        """Refuse a number of chunks that no episode has.

        Raises:
            UserError: for a budget above the `longest` episode's chunks.
        """
        if self.chunks is not None and self.chunks > longest:
            raise UserError(
                f"budget={self.chunks} is above the {longest} chunks of the longest episode, so nothing would be "
                f"masked; mask.budget={longest} is the most"
            )


def _kind_and_value(option: Any) -> tuple[str, Any]:
    if not isinstance(option, Mapping):
        return "chunks", option
    if len(option) != 1 or next(iter(option)) not in KINDS:
        raise ValueError(
            f"budget takes one of chunks, fraction and knee, got {', '.join(map(str, option)) or 'none'} "
            "(mask.budget=12, or mask=pcm mask.budget.fraction=0.19)"
        )
    return next(iter(option.items()))


def check_count(name: str, value: int, unit: str, fix: str, least: int = 1) -> None:
    """Refuse an option that is no whole number of units, or below `least`; `fix` is an override that would work."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number of {unit}s, got {value!r} ({fix})")
    if value < least:
        raise ValueError(f"{name} must be at least {least} {unit}, got {value} ({fix})")
