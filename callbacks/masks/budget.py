"""`Budget`: how many chunks of a trajectory a mask may keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_rl.checks import check_count, check_fraction
from vla_rl.errors import UserError

KINDS = ("chunks", "fraction", "knee")


class Budget:
    """A number of chunks, a fraction of a trajectory's chunks, or a fraction that the mask finds out (`knee`).

    Args:
        option: `12` or `{chunks: 12}`; `{fraction: 0.19}`; `{knee: true}`.
        knee: whether the mask can find a knee.

    Raises:
        UserError: for anything else.

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
            check_count("mask.budget", value, 12)
            self.chunks = value
        elif kind == "fraction":
            check_fraction("mask.budget.fraction", value, 0.19)
            self.fraction = float(value)
        elif value is not True:
            raise UserError(
                f"mask.budget.knee can only be true, got {value!r} (mask.budget.knee=true, or mask.budget=12)"
            )
        elif not knee:
            raise UserError("only a mask that scores phases can look for the knee of their curve (mask=pcm)")

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
        raise UserError(
            f"mask.budget takes one of chunks, fraction and knee, got {', '.join(map(str, option)) or 'none'} "
            "(mask.budget=12, or mask=pcm mask.budget.fraction=0.19)"
        )
    return next(iter(option.items()))
