"""From a client's observation, whose names are openpi's, to what a policy reads. What does not fit is one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_rl.errors import UserError, did_you_mean

IMAGES = ("observation/image", "observation/wrist_image")
STATE, PROMPT, SEED = "observation/state", "prompt", "seed"
LARGEST_PX = 2048
LONGEST_PROMPT = 1000  # characters
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Expected:
    """What the policy reads."""

    images: int
    proprio_dims: int  # 0: no state is needed
    turned: bool  # pictures arrive turned by 180 degrees against what the simulator renders


@dataclass(slots=True)
class Request:
    """One decision that a client waits for."""

    frame_HWC: Tensor  # uint8, as the simulator renders them
    proprio_P: Tensor  # float32
    instruction: str
    seed: int | None  # that the client chose for its sampling


def parse_request(message: Any, expected: Expected) -> Request:
    """Raises UserError where the message is no observation that the policy can read."""
    if not isinstance(message, dict):
        raise UserError(f"an observation is a map, got {type(message).__name__}")
    pictures = [_picture(message, key) for key in IMAGES[: expected.images]]
    if len({picture.shape for picture in pictures}) > 1:
        raise UserError(f"pictures must be of one size, got {' and '.join(str(p.shape) for p in pictures)}")
    frame = np.concatenate(pictures, axis=-1)
    frame = frame[::-1, ::-1] if expected.turned else frame
    prompt = _given(message, PROMPT)
    if not isinstance(prompt, str) or not 0 < len(prompt.strip()) <= LONGEST_PROMPT:
        raise UserError(f"{PROMPT!r} must be text of 1 to {LONGEST_PROMPT} characters, got {_shown(prompt)}")
    seed = message.get(SEED)
    if seed is not None and (type(seed) is not int or not 0 <= seed <= LARGEST_SEED):
        raise UserError(f"{SEED!r} must be an integer >= 0 and <= {LARGEST_SEED}, got {_shown(seed)}")
    return Request(
        torch.from_numpy(np.array(frame)), torch.from_numpy(_state(message, expected.proprio_dims)), prompt, seed
    )


def _picture(message: dict[Any, Any], key: str) -> np.ndarray:
    value = _given(message, key)
    fits = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3
    if not fits or value.shape[0] != value.shape[1] or not 0 < value.shape[0] <= LARGEST_PX:
        raise UserError(
            f"{key!r} must be a square picture, uint8 [px, px, 3] with px up to {LARGEST_PX}, got {_shown(value)}"
        )
    return value


def _state(message: dict[Any, Any], dims: int) -> np.ndarray:
    if not dims and STATE not in message:
        return np.zeros(0, np.float32)
    value = _given(message, STATE)
    numbers = isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.ndim == 1
    if not numbers or len(value) > 1000 or (dims and len(value) != dims):
        count = f"{dims} numbers" if dims else "up to 1000 numbers"
        raise UserError(f"{STATE!r} must be an array of {count}, got {_shown(value)}")
    state = np.array(value, np.float32)
    if not np.isfinite(state).all():
        raise UserError(f"{STATE!r} holds NaN or infinite values")
    return state


def _given(message: dict[Any, Any], key: str) -> Any:
    if key not in message:
        names = [name for name in message if isinstance(name, str)]
        raise UserError(f"the observation has no {key!r}{did_you_mean(key, names)}")
    return message[key]


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
