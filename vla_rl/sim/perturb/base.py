"""What a perturbation may change: a picture, the scene, how an episode starts, the instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vla_rl.sim.render import Camera


class Perturbation:
    """Changes nothing: subclasses are frozen dataclasses of options that override what they change.

    Every generator is a new one, seeded by what it is for, so that a draw depends on nothing that was drawn before.
    """

    def check(self) -> None:
        """Raise UserError for an option out of range, under the option's own name."""

    def picture(self, frame_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What the policy sees of one uint8 picture [H, W, 3]."""
        return frame_HWC

    def scene(self, camera: Camera, rng: np.random.Generator) -> None:
        """Change what is drawn, in the model that `camera` draws; it is as it was built when this is called."""

    def start(self, options: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The options that the environment is reset with."""
        return options

    def instruction(self, sentence: str, rng: np.random.Generator) -> str:
        return sentence
