"""The tables of a comparison of runs, for people: as aligned text and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from vla_rl.errors import UserError, did_you_mean
from vla_rl.functional.statistics import MeanInterval, SuccessRate
from vla_rl.run.compare import Run, arms, paired_difference, success_interval, success_of

MODES = ("sampled", "greedy")


@dataclass(frozen=True, slots=True)
class Table:
    """A heading, rows below it, and a sentence about its intervals."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str

    def to_markdown(self) -> str:
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.head, *self.rows)]
        return "\n".join([lines[0], "|" + "---|" * len(self.head), *lines[1:], "", self.note, ""])

    def to_text(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in (self.head, *self.rows)]
        return "\n".join([*lines, self.note, ""])


def comparison_tables(runs: Sequence[Run], against: str | None = None) -> list[Table]:
    """A row per arm; where there are several seeds a row per run; where arms share seeds their paired differences.

    Args:
        against: the arm that the others are compared with; None = the first.

    Raises:
        UserError: no such arm.
    """
    grouped = arms(runs)
    first = against or next(iter(grouped))
    if first not in grouped:
        names = ", ".join(f"'{name}'" for name in grouped)
        raise UserError(
            f"no arm '{first}'{did_you_mean(first, grouped)} Arms: {names} (against='{next(iter(grouped))}')"
        )
    tables = [arm_table(grouped)]
    if len(runs) > len(grouped):
        tables.append(run_table(grouped))
    differences = difference_table(grouped, first)
    return [*tables, differences] if differences.rows else tables


def _success(members: list[Run], key: str, mode: str) -> str:
    return _interval(success_interval(members, key, mode))


def arm_table(grouped: dict[str, list[Run]]) -> Table:
    """What each arm reached and cost; sums over iterations are means over seeds."""
    columns: dict[str, Callable[[list[Run]], str]] = {"seeds": lambda members: str(len(members))}
    for mode in _measured(grouped):
        for when in ("before", "after"):
            columns[f"{mode} {when}"] = partial(_success, key=f"success_{when}", mode=mode)
    columns |= {
        "chunks trained on": lambda members: f"{_total(members, 'chunks/kept'):.0f}",
        "of executed": lambda members: (
            f"{100 * _total(members, 'chunks/kept') / max(_total(members, 'chunks/real'), 1):.0f}%"
        ),
        "update s": lambda members: f"{_total(members, 'time/update_s'):.1f}",
        "rollout s": lambda members: f"{_total(members, 'time/rollout_s'):.1f}",
    }
    rows = [(arm, *(cell(members) for cell in columns.values())) for arm, members in grouped.items()]
    several = any(len(members) > 1 for members in grouped.values())
    over_seeds = "mean over seeds with the 95% interval of Student's t" if several else ""
    of_one = "rate of one run with its 95% Wilson interval" if any(len(m) == 1 for m in grouped.values()) else ""
    note = f"Success: {'; '.join(filter(None, (over_seeds, of_one)))}."
    return Table(("arm", *columns), rows, f"{note} Chunks and seconds are sums over a run, means over seeds.")


def run_table(grouped: dict[str, list[Run]]) -> Table:
    """Success of every run."""
    columns = [(mode, when) for mode in _measured(grouped) for when in ("before", "after")]
    rows = [
        (arm, str(run.seed), *(_rate(success_of(run, f"success_{when}", mode)) for mode, when in columns))
        for arm, members in grouped.items()
        for run in members
    ]
    head = ("arm", "seed", *(f"{mode} {when}" for mode, when in columns))
    return Table(head, rows, "Success of each run with the 95% Wilson interval of its episodes.")


def difference_table(grouped: dict[str, list[Run]], first: str) -> Table:
    """Success after training of each arm minus that of `first`, paired by seed; none where they share no two seeds."""
    rows: list[tuple[str, ...]] = [
        (f"{arm} - {first}", mode, str(difference.count), _interval(difference, signed=True))
        for arm, members in grouped.items()
        if arm != first
        for mode in _measured(grouped)
        if (difference := paired_difference(grouped[first], members, mode))
    ]
    note = "Differences of success after training, paired by seed, with the 95% interval of Student's t."
    return Table(("arms", "decoding", "seeds", "difference"), rows, note)


def _measured(grouped: dict[str, list[Run]]) -> list[str]:
    """What success was measured of: decodings, and where else than on the held-out initial states."""
    found = dict.fromkeys(mode for members in grouped.values() for run in members for mode in run.measured)
    return sorted(found, key=lambda mode: MODES.index(mode) if mode in MODES else len(MODES))


def _total(members: list[Run], tag: str) -> float:
    return sum(sum(row[tag] for row in run.rows) for run in members) / len(members)


def _rate(rate: SuccessRate | None) -> str:
    return "-" if rate is None else f"{rate.rate:.2f} [{rate.wilson_low:.2f}, {rate.wilson_high:.2f}]"


def _interval(found: MeanInterval | None, signed: bool = False) -> str:
    if found is None or math.isnan(found.low):
        return "-"
    form = "+.2f" if signed else ".2f"
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"
