"""What demonstrations a run trains on: in words, and the first picture of each source as the policy is shown it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from vla_rl.demos.demo import Demo

SOURCES = 12  # pictures at most
COLUMNS = 4


def describe(demos: Sequence[Demo]) -> str:
    """Example: `379 demonstrations of 10 instructions, 52042 control steps (libero_object)`."""
    sets = ", ".join(dict.fromkeys(demo.dataset for demo in demos))
    instructions = len({demo.instruction for demo in demos})
    steps = sum(len(demo) for demo in demos)
    return f"{len(demos)} demonstrations of {instructions} instructions, {steps} control steps ({sets})"


def draw_first_frames(demos: Sequence[Demo]) -> Figure:
    """The first frame of the first demonstration of each instruction, cameras beside each other, upright.

    A picture that stands on its head says that `sft.turned` has to be the other one; a picture of the wrong camera
    says that `sft.cameras` has to be given.
    """
    firsts = list({demo.instruction: demo for demo in reversed(demos)}.values())[::-1][:SOURCES]
    columns = min(COLUMNS, len(firsts))
    rows = -(-len(firsts) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.4 * rows), layout="constrained")
    for place, demo in enumerate(firsts, 1):
        frame_HWC = demo.frame_THWC[[0]][0].numpy()
        cameras = np.split(frame_HWC[::-1], frame_HWC.shape[-1] // 3, axis=-1)  # bottom row first, as rendered
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(np.concatenate(cameras, axis=1))
        axes.set_title("\n".join(textwrap.wrap(demo.instruction, 34)), fontsize=9)
        axes.set_xlabel("\n".join(textwrap.wrap(demo.origin.rpartition("/")[2], 40)), fontsize=7)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle("First frames, which have to stand upright", fontsize=10)
    return figure
