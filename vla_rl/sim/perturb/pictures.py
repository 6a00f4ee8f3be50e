"""Perturbations of a camera's signal: blur, occlusion, sensor noise. Pure functions of uint8 pictures [H, W, 3]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_rl.checks import check_count, check_fraction
from vla_rl.errors import UserError
from vla_rl.sim.perturb.base import Perturbation


def gaussian_weights(kernel: int) -> np.ndarray:
    """float64 [kernel], w_i ~ exp(-(i - c)^2 / (2 s^2)) with c the middle, sum 1; s = 0.3 ((kernel - 1) / 2 - 1) + 0.8,
    which is what OpenCV's GaussianBlur takes where only the kernel is given."""
    sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    offset_K = np.arange(kernel) - kernel // 2
    weight_K = np.exp(-(offset_K**2) / (2 * sigma**2))
    return weight_K / weight_K.sum()


def blurred(frame_HWC: np.ndarray, weight_K: np.ndarray) -> np.ndarray:
    """Each pixel the weighted mean of those around it, along rows and columns; the border's pixels go on outside."""
    values_HWC = frame_HWC.astype(np.float64)
    for axis in (0, 1):
        half, length = len(weight_K) // 2, values_HWC.shape[axis]
        padding = [(half, half) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(values_HWC, padding, mode="edge")
        shifted = [np.take(padded, range(k, k + length), axis=axis) for k in range(len(weight_K))]
        values_HWC = sum(weight * values for weight, values in zip(weight_K, shifted, strict=True))
    return values_HWC.round().astype(np.uint8)


def occluded(frame_HWC: np.ndarray, share: float, patches: int, rng: np.random.Generator) -> np.ndarray:
    """Black out round(share * patches^2) of the cells of a grid of `patches` x `patches`, drawn without replacement."""
    covered = rng.permutation(patches**2).reshape(patches, patches) < round(share * patches**2)
    height, width, _ = frame_HWC.shape
    row_H, column_W = np.arange(height) * patches // height, np.arange(width) * patches // width
    return np.where(covered[row_H[:, None], column_W][..., None], np.uint8(0), frame_HWC)


def noisy(frame_HWC: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Add N(0, (255 std)^2) to every number, then round and clip."""
    noise_HWC = rng.standard_normal(frame_HWC.shape) * (255 * std)
    return (frame_HWC + noise_HWC).round().clip(0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Blur(Perturbation):
    """Gaussian blur; `kernel` is its width in pixels of the frame, odd."""

    kernel: int = 5

    def check(self) -> None:
        check_count("kernel", self.kernel, 5, least=3)
        if self.kernel % 2 == 0:
            raise UserError(f"kernel must be odd, got {self.kernel} (kernel={self.kernel + 1})")

    def picture(self, frame_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return blurred(frame_HWC, gaussian_weights(self.kernel))


@dataclass(frozen=True, slots=True)
class Occlusion(Perturbation):
    """Black cells that cover `share` of each frame, of a grid of `patches` x `patches`, drawn anew for every frame."""

    share: float = 0.5
    patches: int = 8

    def check(self) -> None:
        check_fraction("share", self.share, 0.5)
        check_count("patches", self.patches, 8)

    def picture(self, frame_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return occluded(frame_HWC, self.share, self.patches, rng)


@dataclass(frozen=True, slots=True)
class Noise(Perturbation):
    """Gaussian noise of a sensor, drawn anew for every frame; `std` as a share of the brightest value."""

    std: float = 0.1

    def check(self) -> None:
        check_fraction("std", self.std, 0.1)

    def picture(self, frame_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return noisy(frame_HWC, self.std, rng)
