"""The same instruction in other words."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from vla_rl.sim.perturb.base import Perturbation

FRAMES = ("{}", "please {}", "could you {}", "your task is to {}", "i want you to {}", "{} now")
SYNONYMS = {  # whole words -> what may stand for them
    "pick up": ("grab", "take", "lift up"),
    "place": ("put", "set"),
    "put": ("place", "set"),
    "push": ("shove", "slide"),
    "open": ("pull open",),
    "close": ("shut",),
    "turn on": ("switch on",),
    "turn off": ("switch off",),
}
_VERBS = re.compile(r"\b(" + "|".join(SYNONYMS) + r")\b")


def reworded(sentence: str, rng: np.random.Generator) -> str:
    """Another verb for each that has a synonym, and a frame around the sentence; never the sentence itself."""

    def other(match: re.Match[str]) -> str:
        choices = SYNONYMS[match[0]]
        return choices[rng.integers(len(choices))]

    changed = _VERBS.sub(other, sentence)
    first = 1 if changed == sentence else 0  # a sentence without a known verb has to be framed
    return FRAMES[rng.integers(first, len(FRAMES))].format(changed)


@dataclass(frozen=True, slots=True)
class Wording(Perturbation):
    """The instruction in other words."""

    def instruction(self, sentence: str, rng: np.random.Generator) -> str:
        return reworded(sentence, rng)
