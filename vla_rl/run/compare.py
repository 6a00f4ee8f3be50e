"""Finished runs, read back from their folders and grouped into arms: runs that differ in nothing but the seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from vla_rl.config.aliases import translate
from vla_rl.config.compose import CONF_DIR, group_names
from vla_rl.config.schema import Config
from vla_rl.errors import UserError
from vla_rl.files import read_json, read_json_lines, read_yaml
from vla_rl.functional.statistics import MeanInterval, SuccessRate
from vla_rl.run.folder import read_rates
from vla_rl.run.resume import MAY_DIFFER
from vla_rl.run.summary import ELSEWHERE

WINDOW = 3  # iterations of rollouts averaged where nothing was held out
ROUNDING = 1e-9  # a mean of .2, .4 and .6 is .4 or a bit less, as Python 3.12 adds up otherwise than 3.11
HELDOUT = "heldout/sampled_success"
LOGGED = ("rollout/success", "time/rollout_s", "time/update_s", "chunks/kept", "chunks/real")  # what is compared
# slots of callbacks that watch a run and change nothing in it
WATCHING = (
    *("before_after", "credit_kept", "diagnostics", "elsewhere", "phase_plot", "progress", "run_plot", "trace"),
    "videos",
)
# keys that may differ inside an arm: the seed, where a run lies, the hardware it ran on, what only watched it, and what
# is not of these runs
SAME_ARM = (
    *("seed", "sft", *(f"callbacks.{name}" for name in WATCHING)),
    *(key for key in MAY_DIFFER if key != "iterations"),
)
# what an option that came after a run was in it
DEFAULTS = {
    f"{section}.{key}": value
    for section in ("rollout", "grpo", "optim", "evaluation")
    for key, value in asdict(getattr(Config(), section)).items()
}


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder."""

    arm: str  # its mask and budget; `arms` adds what else differs
    mask: str  # its name in conf/mask, or its class
    budget: int | None  # chunks of a trajectory; None where it is not a number of chunks
    seed: int
    rows: list[dict[str, float]]  # of metrics.jsonl, one per iteration
    summary: dict[str, Any]  # summary.json
    values: dict[str, Any] = field(default_factory=dict)  # of config.yaml, by dotted key

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Raises UserError where the folder holds no finished run, or one of its files is damaged."""
        for name in ("config.yaml", "metrics.jsonl", "summary.json"):
            if not (folder / name).is_file():
                raise UserError(f"{folder} holds no finished run: it has no {name} (give run folders of vla_rl.fit)")
        config = translate(read_yaml(folder / "config.yaml"))
        try:
            mask, budget = mask_name(config["mask"]), (config["mask"] or {}).get("budget")
            arm = mask if budget is None else f"{mask} {_shown(budget)}"
            if type(seed := config["seed"]) is not int:
                raise TypeError(f"seed is {seed!r}")
        except (KeyError, TypeError, AttributeError) as e:
            raise _damaged(folder / "config.yaml", f"{type(e).__name__}: {e}") from e
        rows, summary = read_json_lines(folder / "metrics.jsonl"), read_json(folder / "summary.json")
        if len(rows) != (done := summary.get("iterations", len(rows))):
            raise _damaged(folder / "metrics.jsonl", f"{len(rows)} iterations, and summary.json has iterations={done}")
        for number, row in enumerate(rows):
            for tag in (*LOGGED, *row):
                value = row.get(tag)
                if not isinstance(value, int | float) or (tag in LOGGED and not math.isfinite(value)):
                    raise _damaged(folder / "metrics.jsonl", f"{tag} of iteration {number} is {value!r}")
        for when in ("success_before", "success_after"):
            read_rates(summary.get(when), f"{folder / 'summary.json'}: {when}")
        if (elsewhere := folder / ELSEWHERE).is_file():
            _add_elsewhere(summary, read_json(elsewhere), elsewhere)
        return cls(
            arm=arm,
            mask=mask,
            budget=budget if isinstance(budget, int) else None,
            seed=seed,
            rows=rows,
            summary=summary,
            values=DEFAULTS | _flat(config),
        )

    @property
    def measured(self) -> list[str]:
        """What success was measured of: `sampled` and `greedy`, and by `callbacks.SuccessElsewhere`."""
        return list(self.summary["success_after"])

    @property
    def seconds(self) -> list[float]:
        """Of rollouts and updates, up to and including each iteration; evaluations are left out."""
        return list(accumulate(row["time/rollout_s"] + row["time/update_s"] for row in self.rows))

    @property
    def update_seconds(self) -> list[float]:
        return list(accumulate(row["time/update_s"] for row in self.rows))

    @property
    def success(self) -> list[tuple[int, float]]:
        """(iterations done, success): sampled on held-out states where that was measured during training, else that of
        the rollouts, a mean over up to `WINDOW` iterations."""
        heldout = [(i + 1, row["heldout/sampled_success"]) for i, row in enumerate(self.rows) if HELDOUT in row]
        if heldout:
            return heldout
        rates = [row["rollout/success"] for row in self.rows]
        return [(i + 1, _mean(rates[max(0, i + 1 - WINDOW) : i + 1])) for i in range(len(rates))]

    def seconds_to(self, threshold: float) -> float | None:
        """Seconds until success first reaches the threshold; None: never."""
        for iterations, rate in self.success:
            if rate >= threshold - ROUNDING:
                return self.seconds[iterations - 1]
        return None


def _add_elsewhere(summary: dict[str, Any], found: dict[str, Any], file: Path) -> None:
    """Success elsewhere beside that of the held-out states, named by what is different there."""
    try:
        there = ", ".join(f"{name}={value}" for name, value in found["sim"].items())
        name = f"{found['decoding']} at {there}"
        rates = {when: {name: found[when]} for when in ("before", "after")}
    except (KeyError, TypeError, AttributeError) as e:
        raise _damaged(file, f"{type(e).__name__}: {e}") from e
    for when, rate in rates.items():
        read_rates(rate, f"{file}: {when}")
        summary[f"success_{when}"] |= rate


def _damaged(file: Path, what: str) -> UserError:
    return UserError(f"{file} does not hold what is compared ({what}): copy the run again")


def mask_name(node: dict[str, Any] | None) -> str:
    """The name in conf/mask of a mask with these options, whatever its budget, and the options that differ from those
    of the nearest file ("pcm debias=true"); its class where no file has it."""
    if node is None:
        return "none"
    named = []
    for name in group_names("mask"):
        tree = yaml.safe_load((CONF_DIR / "mask" / f"{name}.yaml").read_text(encoding="utf-8")) or {}
        if base := tree.pop("extends", None):
            tree = yaml.safe_load((CONF_DIR / "mask" / f"{base}.yaml").read_text(encoding="utf-8")) | tree
        if tree and tree["_target_"] == node["_target_"]:
            # options that came after the run have their defaults
            differing = [key for key in node if key != "budget" and node[key] != tree.get(key)]
            named.append([name, *(_option(key, node[key]) for key in differing)])
    if not named:
        return node["_target_"].rpartition(".")[2]
    fewest = min(named, key=len)
    return " ".join(fewest)


def arms(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by arm, in the order of their first one. An arm is named by its mask and budget, and by whatever else its
    config has that others among the runs have not.

    Raises:
        UserError: an arm has two runs of one seed, which are no independent samples.
    """
    telling = _telling_keys(runs)
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        told = [f"{key.removesuffix('._target_')}={run.values[key]}" for key in telling if key in run.values]
        members = grouped.setdefault(" ".join([run.arm, *told]), [])
        if run.seed in [member.seed for member in members]:
            raise UserError(f"two runs of the arm '{run.arm}' have seed {run.seed}: give one run for each seed")
        members.append(run)
    return grouped


def success_interval(runs: Sequence[Run], when: str, decoding: str) -> MeanInterval | None:
    """Success of an arm: the mean over seeds with Student's t interval, as seeds differ by more than the episodes of
    one run can show; of one run its rate with Wilson's interval. None where it was not measured.

    Args:
        when: success_before or success_after.
        decoding: sampled or greedy, or what else was `measured`.
    """
    rates = [rate for run in runs if (rate := success_of(run, when, decoding))]
    if len(rates) < len(runs):
        return None
    if len(rates) == 1:
        return MeanInterval(rates[0].rate, rates[0].wilson_low, rates[0].wilson_high, 1)
    return MeanInterval.of([rate.rate for rate in rates])


def success_of(run: Run, when: str, decoding: str) -> SuccessRate | None:
    """Of one run, as its summary has it; arguments as above."""
    rate = run.summary[when].get(decoding)
    return None if rate is None else SuccessRate(**rate)


def paired_difference(first: Sequence[Run], second: Sequence[Run], decoding: str) -> MeanInterval | None:
    """Success after training of one arm minus that of another, by seed, over the seeds that both have (Student's t);
    None where they share fewer than two, or it was not measured."""
    rates = [
        {run.seed: rate.rate for run in arm if (rate := success_of(run, "success_after", decoding))}
        for arm in (first, second)
    ]
    shared = sorted(rates[0].keys() & rates[1].keys())
    return MeanInterval.of([rates[1][seed] - rates[0][seed] for seed in shared]) if len(shared) > 1 else None


def _telling_keys(runs: Sequence[Run]) -> list[str]:
    """Keys by which the runs differ, less those that an arm's mask and budget say already."""
    keys = dict.fromkeys(key for run in runs for key in run.values)
    telling = []
    for key in keys:
        if any(f"{key}.".startswith(f"{same}.") for same in SAME_ARM):
            continue
        alike: dict[str, list[Any]] = {}  # values among runs that must be told apart by this key
        for run in runs:
            alike.setdefault(_told_before(run, key), []).append(run.values.get(key))
        if any(value != values[0] for values in alike.values() for value in values):
            telling.append(key)
    return telling


def _told_before(run: Run, key: str) -> str:
    """What tells runs apart before this key does: a mask's name and budget, or the class of the node with the key."""
    if key.startswith("mask."):
        return run.arm
    node, _, option = key.rpartition(".")
    while node and option != "_target_":
        if target := run.values.get(f"{node}._target_"):
            return target
        node = node.rpartition(".")[0]
    return ""


def _flat(tree: Any, key: str = "") -> dict[str, Any]:
    """`{"mask": {"budget": 8}}` -> `{"mask.budget": 8}`."""
    if not isinstance(tree, dict) or not tree:
        return {key: tree}
    return {k: v for name, inner in tree.items() for k, v in _flat(inner, f"{key}.{name}" if key else name).items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def _option(key: str, value: Any) -> str:
    """As it was given."""
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"


def _shown(budget: Any) -> str:
    return f"B={budget}" if isinstance(budget, int) else " ".join(f"{k}={v}" for k, v in budget.items())
