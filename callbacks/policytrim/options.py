"""What PolicyTrim may be given: one line for each mistake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vla_rl.checks import check_count
from vla_rl.errors import UserError
from vla_rl.functional.rewards import spaced_ratios, window_of


def check_ratios(base_window: Any, ratios: Any) -> None:
    """Refuse a base window below 1, invalid ratios, and both together."""
    if base_window is not None:
        check_count("reward.base_window", base_window, 8)
    if ratios is None:
        return
    numbers = isinstance(ratios, Sequence) and not isinstance(ratios, str) and len(ratios) > 0
    if not numbers or not all(type(r) in (int, float) and 0 < r <= 1 for r in ratios):
        raise UserError(
            f"reward.ratios must be numbers above 0 and at most 1, got {ratios!r} (reward.ratios=[0.5,0.75,1])"
        )
    if base_window is not None:
        raise UserError(
            f"the smallest of ratios is the base window, so base_window={base_window} says it twice "
            "(reward.base_window=null, or reward.ratios=null)"
        )


def windows_of(
    base_window: int | None, ratios: Sequence[float] | None, chunk_steps: int, extend_iterations: int
) -> dict[int, float]:
    """gamma by window, from the narrowest to the widest.

    Args:
        chunk_steps: H, what the policy decides at a time.

    Raises:
        UserError: windows the policy does not have, and a first stage without anything to extend.
    """
    base = chunk_steps if base_window is None else base_window
    if base > chunk_steps:
        raise UserError(
            f"base_window={base} is above the {chunk_steps} control steps that the policy decides at a time: "
            f"reward.base_window={chunk_steps} is the most"
        )
    if ratios is None:
        ratios = spaced_ratios(base, chunk_steps) if base < chunk_steps else [1.0]
    ratios = sorted(ratios)
    windows = {window_of(ratio, chunk_steps): ratio for ratio in ratios}
    if len(windows) < len(ratios) or 0 in windows:
        steps = ", ".join(str(window_of(ratio, chunk_steps)) for ratio in ratios)
        raise UserError(
            f"of the policy's {chunk_steps} control steps the ratios execute {steps}: windows must differ and have a "
            f"step at least (reward.base_window=null reward.ratios=[{_coarse(chunk_steps)}])"
        )
    if extend_iterations and len(windows) == 1:
        raise UserError(
            f"stage 1 has no longer window to go to: the policy decides {chunk_steps} control steps at a time, and "
            f"{min(windows)} are executed (reward.extend_iterations=0 takes stage 2 alone; a wider policy: "
            "python -m vla_rl.sft conf=sft_object_tiny_h16)"
        )
    return windows


def _coarse(chunk_steps: int) -> str:
    return "0.5,1" if chunk_steps > 1 else "1"
