"""Action tokens: bins, centres, normalisation, the gripper's two conventions.

A token is a bin index n = 0..255 into the slice of action logits; in the vocabulary it is the id `first_action_id + n`.
OpenVLA counts its ids down from the end of the text vocabulary, so the largest action is bin index 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.policy.entries import check_numbers, check_object

STATISTICS = "dataset_statistics.json"
BINS = 256
SPAN_EPS = 1e-8  # the reference adds it to q99 - q01


def tokenize(action: Tensor) -> Tensor:
    """Normalised actions to bin indices.

    id = 32000 - digitize(clip(a, -1, 1), linspace(-1, 1, 256)), minus 31744 (OpenVLA, arXiv 2406.09246, section 3.2).

    Args:
        action: any shape, clipped to [-1, 1].

    Example:
        >>> tokenize(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([255, 128,   0])
    """
    edges = torch.linspace(-1, 1, BINS, dtype=torch.float64, device=action.device)
    return BINS - torch.bucketize(action.double().clip(-1, 1), edges, right=True)


def detokenize(token: Tensor) -> Tensor:
    """Bin indices to normalised actions: the centres of the 255 bins between the 256 edges, float64.

    Bin index clip(255 - n, 0, 254) counts up from -1; n = 0 and n = 1 share the topmost centre.

    Example:
        >>> detokenize(torch.tensor([255, 0])) * 255
        tensor([-254.,  254.], dtype=torch.float64)
    """
    edges = torch.linspace(-1, 1, BINS, dtype=torch.float64, device=token.device)
    centres = (edges[:-1] + edges[1:]) / 2
    return centres[(BINS - 1 - token).clip(0, BINS - 2)]


def gripper_to_env(opening: Tensor) -> Tensor:
    """The model's gripper, [0, 1] with 1 = open, to robosuite's: -sign(2g - 1), so -1 opens and +1 closes."""
    return -torch.sign(2 * opening - 1)


def gripper_to_model(command: Tensor) -> Tensor:
    """Robosuite's gripper command, -1 open and +1 close, to the model's opening in [0, 1]."""
    return ((1 - command) / 2).clip(0, 1)


@dataclass(slots=True)
class Bounds:
    """Per dimension the 1% and 99% quantiles that -1 and 1 stand for; where `mask` is False values stay as they are."""

    q01: Tensor  # float64 [dims]
    q99: Tensor  # float64 [dims]
    mask: Tensor  # bool [dims]

    @classmethod
    def from_json(cls, entry: Any, where: str, dims: int | None = None) -> Bounds:
        """From one entry (`action` or `proprio`) of a dataset's statistics.

        Args:
            where: the file and the entry, for messages.
            dims: how many dimensions the model has; None takes the entry's.

        Raises:
            UserError: it lacks a quantile, or holds what is none.
        """
        entry = check_object(entry, where)
        for name in ("q01", "q99"):
            if name not in entry:
                raise UserError(f"{where} has no {name!r}")
        q01 = check_numbers(entry["q01"], f"{where}: 'q01'", dims)
        q99 = check_numbers(entry["q99"], f"{where}: 'q99'", len(q01))
        mask = entry.get("mask", [True] * len(q01))
        if not isinstance(mask, list) or len(mask) != len(q01) or any(value not in (True, False) for value in mask):
            raise UserError(f"{where}: 'mask' must be a list of {len(q01)} times true or false, got {mask!r}")
        for n, (low, high) in enumerate(zip(q01, q99, strict=True)):
            if low > high:
                raise UserError(f"{where}: 'q01' exceeds 'q99' in dimension {n}, {low} > {high}: are they swapped?")
        return cls(
            torch.tensor(q01, dtype=torch.float64), torch.tensor(q99, dtype=torch.float64), torch.tensor(mask).bool()
        )

    def normalize(self, value: Tensor) -> Tensor:
        """where(mask, 2 (v - q01) / (q99 - q01 + 1e-8) - 1, v), clipped to [-1, 1]."""
        scaled = 2 * (value - self.q01) / (self.q99 - self.q01 + SPAN_EPS) - 1
        return torch.where(self.mask, scaled, value.double()).clip(-1, 1)

    def unnormalize(self, value: Tensor) -> Tensor:
        """where(mask, 0.5 (v + 1) (q99 - q01 + 1e-8) + q01, v)."""
        scaled = 0.5 * (value + 1) * (self.q99 - self.q01 + SPAN_EPS) + self.q01
        return torch.where(self.mask, scaled, value.double())


@dataclass(slots=True)
class Statistics:
    """What normalises one dataset: its key in `dataset_statistics.json`, the file's whole content, and the bounds."""

    key: str
    content: dict[str, Any]
    action: Bounds
    proprio: Bounds | None

    @property
    def action_dims(self) -> int:
        """A, numbers of an action."""
        return len(self.action.q01)

    @classmethod
    def select(
        cls, content: dict[str, Any], key: str | None, *, proprio_dims: int = 0, source: str = STATISTICS
    ) -> Statistics:
        """The statistics of dataset `key`: itself, else `{key}_no_noops`; None takes the only one there is.

        Args:
            proprio_dims: of the model; 0 for one that reads no proprioception.
            source: the file that held `content`, for messages.

        Raises:
            UserError: no such dataset, or it lacks statistics that the model needs.
        """
        if not content:
            raise UserError(f"{source} has 0 datasets: copy the {STATISTICS} that came with the weights beside them")
        have = ", ".join(content)
        if key is None and len(content) != 1:
            fix = f"policy.unnorm_key={next(iter(content))}"
            raise UserError(f"{source} has {len(content)} datasets ({have}), choose one: {fix}")
        names = list(content) if key is None else [key, f"{key}_no_noops"]
        name = next((n for n in names if n in content), None)
        if name is None:
            fix = f"policy.unnorm_key={next(iter(content))}"
            raise UserError(f"no statistics for {key!r} in {source}; it has: {have} ({fix})")
        entry = check_object(content[name], f"{source}: {name!r}")

        def bounds(part: str, dims: int | None) -> Bounds:
            where = f"{source}: {part!r} of {name!r}"
            if part not in entry:
                raise UserError(f"{where} is missing")
            return Bounds.from_json(entry[part], where, dims)

        return cls(name, content, bounds("action", None), bounds("proprio", proprio_dims) if proprio_dims else None)


def measure_statistics(action_TA: Tensor, proprio_TP: Tensor) -> dict[str, Any]:
    """One dataset's entry of `dataset_statistics.json` in the published layout.

    Args:
        action_TA: actions of all control steps, gripper as the model's opening; its dimension is masked out.
        proprio_TP: proprioception of the same steps.
    """

    def describe(value: Tensor) -> dict[str, list[float]]:
        value = value.double()
        return {
            "mean": value.mean(0).tolist(),
            "std": value.std(0, correction=0).tolist(),
            "max": value.amax(0).tolist(),
            "min": value.amin(0).tolist(),
            "q01": value.quantile(0.01, dim=0).tolist(),
            "q99": value.quantile(0.99, dim=0).tolist(),
        }

    action = describe(action_TA) | {"mask": [True] * (action_TA.shape[1] - 1) + [False]}
    return {"action": action, "proprio": describe(proprio_TP), "num_transitions": len(action_TA)}
