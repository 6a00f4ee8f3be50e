"""What readers of other people's files share: which of a file's keys are read, and their words for mistakes."""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import numpy as np
from PIL import Image, UnidentifiedImageError

from vla_rl.errors import UserError, did_you_mean

LARGEST_PX = 2048  # width or height of a picture


@dataclass(frozen=True, slots=True)
class Layout:
    """Which keys of a data set are read; None takes those that the format's published sets have."""

    images: int = 1  # cameras that the policy reads
    cameras: Sequence[str] | None = None
    state: Sequence[str] | None = None  # proprioception, one key after the other
    action: str | None = None
    turned: bool | None = None  # pictures are turned by 180 degrees against what the simulator renders

    def camera_keys(self, usual: Sequence[str], have: Sequence[str], where: object) -> list[str]:
        """One key for each image of the policy.

        Raises:
            UserError: too few or too many, or a camera that the set does not have.
        """
        keys = list(usual[: self.images] if self.cameras is None else self.cameras)
        if len(keys) != self.images:
            names = ", ".join(have) or "none"
            raise UserError(
                f"{where}: the policy reads {self.images} images per decision, and {len(keys)} cameras are named; "
                f"the set has {names} (sft.cameras=[{','.join(list(have)[: self.images])}])"
            )
        check_keys(keys, have, where, "sft.cameras")
        return keys


def check_keys(keys: Sequence[str], have: Sequence[str], where: object, option: str) -> None:
    """Raise UserError unless the set has all `keys`."""
    for key in keys:
        if key not in have:
            raise UserError(f"{where} has no {key!r}{did_you_mean(key, have)} It has: {', '.join(have)} ({option})")


def require(package: str) -> ModuleType:
    """Import a package of the extra `data`.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as e:
        raise UserError(
            f"these demonstrations are read with {package}, which is not installed: pip install 'vla-rl[data]'"
        ) from e


def refuse(where: object, what: object) -> NoReturn:
    """Raise the error about a file that is damaged or not what it should be.

    Args:
        where: the file, or the file and the episode.
    """
    line = next(iter(str(what).splitlines()), type(what).__name__)
    raise UserError(f"{where} cannot be read ({line}): copy or download it again, or leave it out of sft.demos")


def decode_picture(data: bytes, where: object) -> np.ndarray:
    """PNG or JPEG to uint8 [H, W, 3].

    Raises:
        UserError: it is damaged, another format, or larger than `LARGEST_PX`.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))  # reads the header alone
        if max(picture.size) > LARGEST_PX:
            refuse(where, f"{picture.width} x {picture.height} pixels, and at most {LARGEST_PX} are read")
        return np.asarray(picture.convert("RGB"))
    except UserError:
        raise
    except UnidentifiedImageError:  # whose message is of Python's objects
        refuse(where, "neither PNG nor JPEG")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        refuse(where, e)


def natural(name: str | Path) -> tuple[str, int]:
    """Sorts demo_2 before demo_10."""
    text = Path(name).stem
    digits = text[len(text.rstrip("0123456789")) :]
    return text.removesuffix(digits), int(digits or 0)
