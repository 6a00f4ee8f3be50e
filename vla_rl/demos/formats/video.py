"""Frames of a video file by their times: decoded from the keyframe before, and only as far as somebody asked."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from vla_rl.demos.formats.layout import refuse

OPEN_FILES = 16
FAR_FRAMES = 30  # a longer way to the next frame is jumped over instead of decoded


@dataclass(slots=True)
class VideoCamera:
    """One episode's part of a video file.

    Args:
        time_T: of each control step's picture in the file, in seconds.
        fps: frames per second.
    """

    path: Path
    time_T: np.ndarray
    fps: float

    def read(self, steps: Sequence[int]) -> list[np.ndarray]:
        wanted = sorted(set(steps), key=lambda step: self.time_T[step])
        try:
            found = self._decode(wanted)
        except (av.FFmpegError, OSError, IndexError) as e:
            refuse(self.path, e)
        return [found[step] for step in steps]

    def _decode(self, wanted: list[int]) -> dict[int, np.ndarray]:
        """Pictures by step; `wanted` is in the order of time."""
        container = _open(self.path, os.getpid())
        stream = container.streams.video[0]
        found: dict[int, np.ndarray] = {}
        tolerance = 0.5 / self.fps
        frames: Iterator[Any] = iter(())
        last = -np.inf
        for step in wanted:
            time = float(self.time_T[step])
            if time - last > FAR_FRAMES / self.fps:
                start = max(time - tolerance, 0.0)
                container.seek(int(start / stream.time_base), stream=stream)
                frames = container.decode(stream)
            for frame in frames:
                last = float(frame.time)
                if last > time - tolerance:
                    break
            else:
                last = -np.inf
            if abs(last - time) > tolerance:
                refuse(self.path, f"it has no frame at {time:.3f} s")
            found[step] = frame.to_ndarray(format="rgb24")
        return found


def seconds(path: Path) -> float:
    """How long the video is.

    Raises:
        UserError: it cannot be opened, or has no pictures.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if stream.duration is None or stream.time_base is None:
                refuse(path, "it does not say how long it is")
            return float(stream.duration * stream.time_base)
    except (av.FFmpegError, OSError, IndexError) as e:
        refuse(path, e)


@functools.lru_cache(maxsize=OPEN_FILES)
def _open(path: Path, process: int) -> Any:
    """The open file. Each process has its own: decoders do not survive a fork."""
    return av.open(str(path))
