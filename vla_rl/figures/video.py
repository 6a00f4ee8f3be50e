"""Episodes for people: frames with what the policy did written beside them, as mp4, and which episodes to show.

A frame is what the policy saw at a decision, turned upright and enlarged; text stands above and below it, not on it.
Shapes: see `vla_rl.types`; T counts the frames of a video.
"""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vla_rl.config.schema import VideoConfig
from vla_rl.figures.colours import FAILURE_COLOUR, SUCCESS_COLOUR, phase_colour
from vla_rl.functional.phases import Labeller, trajectory_phases
from vla_rl.types import Trajectory

FPS = 5  # decisions a second: twice real time for chunks of 8 control steps at 20 Hz
HOLD = 8  # how many frames the last one stands still for
WIDTH, MARGIN, LINE = 480, 12, 24  # pixels
ABOVE, BELOW = 5 * LINE, 56
WRAP = 54  # characters of an instruction on one of its two lines
INK, PAPER, FAINT = "#111111", "#ffffff", "#d9d9d9"


def choose(
    trajectories: Sequence[Trajectory], rules: VideoConfig, group_of: Callable[[Trajectory], Hashable]
) -> list[Trajectory]:
    """The trajectories that any of the rules names, by uid.

    Monotone: rejected from a subset means rejected from any superset, so rejected episodes can be freed early.
    """
    chosen: list[Trajectory] = []
    failures, members = 0, Counter[Any]()
    for index, trajectory in enumerate(sorted(trajectories, key=lambda t: t.episode.uid)):
        group = group_of(trajectory)
        by_failure = not trajectory.success and failures < rules.failures
        if index < rules.first or by_failure or members[group] < rules.per_group:
            chosen.append(trajectory)
        failures += not trajectory.success
        members[group] += 1
    return chosen


def file_name(trajectory: Trajectory) -> str:
    """`task0_state10003_success_17`, the last being the uid."""
    episode = trajectory.episode
    return f"task{episode.task}_state{episode.init_state}_{outcome(trajectory)}_{episode.uid}"


def outcome(trajectory: Trajectory) -> str:
    return "success" if trajectory.success else "failure"


def upright(frame_HWC: Tensor, turned: bool) -> np.ndarray:
    """The outside camera's picture as a person holds it; for `turned` see `vla_rl.types.Trajectory`."""
    return frame_HWC[..., :3].flip((0, 1) if turned else 0).contiguous().numpy()


def pictures(trajectory: Trajectory) -> list[np.ndarray]:
    """What the policy saw at each decision, and where the episode ended, upright."""
    last = [] if trajectory.last_frame_HWC is None else [trajectory.last_frame_HWC]
    return [upright(frame_HWC, trajectory.turned) for frame_HWC in [*trajectory.frame_NHWC, *last]]


def annotate(trajectory: Trajectory, kept_K: Tensor | None = None, label: Labeller = trajectory_phases) -> np.ndarray:
    """The frames of a video, uint8 [T, H, W, 3]: each decision, then the end.

    Args:
        kept_K: indices of the chunks that were trained on; None where there was no training.
        label: what splits trajectories into phases.
    """
    phase_N = label(trajectory).tolist()
    kept_N = None if kept_K is None else torch.isin(torch.arange(len(trajectory)), kept_K).tolist()
    frames = []
    for n, picture in enumerate(pictures(trajectory)):
        canvas = Image.new("RGB", (WIDTH, ABOVE + WIDTH + BELOW), PAPER)
        draw = ImageDraw.Draw(canvas)
        canvas.paste(Image.fromarray(picture).resize((WIDTH, WIDTH), Image.Resampling.BICUBIC), (0, ABOVE))
        for line, text in enumerate(textwrap.wrap(trajectory.instruction, WRAP, max_lines=2, placeholder=" ...")):
            _text(draw, line, text)
        if n < len(trajectory):
            name = label.phases[phase_N[n]]
            _describe_chunk(draw, trajectory, n, phase_N[n], name, None if kept_N is None else kept_N[n])
        else:
            _describe_outcome(draw, trajectory)
        _timeline(draw, phase_N, kept_N, now=n)
        frames.append(np.asarray(canvas))
    return np.stack(frames)


def write_mp4(path: Path, frame_THWC: np.ndarray) -> None:
    """H.264, which browsers play; the last frame stands still for a moment. Its bytes may differ between runs."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20"})
        stream.height, stream.width = frame_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame_HWC in [*frame_THWC, *[frame_THWC[-1]] * HOLD]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())


def gif(frame_THWC: np.ndarray) -> bytes:
    """The same video at half size as an animated GIF: the one kind that TensorBoard plays."""
    half = [Image.fromarray(frame).reduce(2) for frame in [*frame_THWC, *[frame_THWC[-1]] * HOLD]]
    buffer = io.BytesIO()
    half[0].save(buffer, format="GIF", save_all=True, append_images=half[1:], duration=1000 // FPS, loop=0)
    return buffer.getvalue()


def _text(draw: ImageDraw.ImageDraw, line: int, text: str, x: int = MARGIN, colour: str = INK) -> None:
    """One line above the picture, in as large a type as it has room for."""
    size = 18
    while size > 9 and draw.textlength(text, _font(size)) > WIDTH - MARGIN - x:
        size -= 1
    draw.text((x, (line + 0.75) * LINE), text, fill=colour, font=_font(size), anchor="lm")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # Pillow's own: the same on every machine


def _describe_chunk(
    draw: ImageDraw.ImageDraw, trajectory: Trajectory, n: int, phase: int, name: str, kept: bool | None
) -> None:
    executed, closing = int(trajectory.executed_N[n]), int(trajectory.gripper_closed_NL[n].sum())
    use = "" if kept is None else ", trained on" if kept else ", dropped"
    _text(draw, 2, f"chunk {n + 1} of {len(trajectory)}{use}")
    middle = 3.75 * LINE
    draw.rectangle((MARGIN, middle - 8, MARGIN + 16, middle + 8), fill=phase_colour(phase), outline=INK)
    _text(draw, 3, f"{name}, gripper closes in {closing} of {executed} steps", x=MARGIN + 26)


def _describe_outcome(draw: ImageDraw.ImageDraw, trajectory: Trajectory) -> None:
    colour = SUCCESS_COLOUR if trajectory.success else FAILURE_COLOUR
    draw.rectangle((0, 2.4 * LINE, WIDTH, 4.6 * LINE), fill=colour)
    draw.text(
        (WIDTH / 2, 3.5 * LINE),
        f"{outcome(trajectory).upper()} after {trajectory.steps} steps",
        fill=PAPER,
        font=_font(26),
        anchor="mm",
    )


def _timeline(draw: ImageDraw.ImageDraw, phase_N: list[int], kept_N: list[bool] | None, now: int) -> None:
    """One cell per chunk in its phase's colour: dropped ones are low and hollow, the current one has a mark above."""
    top, bottom, width = ABOVE + WIDTH + 16, ABOVE + WIDTH + BELOW - 8, (WIDTH - 2 * MARGIN) / len(phase_N)
    for n, phase in enumerate(phase_N):
        left, right = MARGIN + n * width, MARGIN + (n + 1) * width - 1
        if kept_N is None or kept_N[n]:
            draw.rectangle((left, top, right, bottom), fill=phase_colour(phase))
        else:
            draw.rectangle((left, top, right, bottom), fill=FAINT)
            draw.rectangle((left, bottom - 8, right, bottom), fill=phase_colour(phase))
        if n == now:
            draw.rectangle((left, top, right, bottom), outline=INK, width=2)
            middle = (left + right) / 2
            draw.polygon(((middle - 6, top - 12), (middle + 6, top - 12), (middle, top - 3)), fill=INK)
