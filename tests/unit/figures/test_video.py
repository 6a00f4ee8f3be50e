"""Which episodes are shown, and what can be read in a video."""

import io
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from tests.helpers.make import make_trajectory
from vla_rl.config.schema import VideoConfig
from vla_rl.figures.colours import FAILURE_COLOUR, PHASE_COLOURS, SUCCESS_COLOUR
from vla_rl.figures.strips import draw_strips
from vla_rl.figures.video import ABOVE, BELOW, HOLD, LINE, WIDTH, annotate, choose, file_name, gif, upright, write_mp4
from vla_rl.functional.phases import APPROACH, PRE_GRASP

CLOSING = [0, 0, 0, 0, 8, 8, 0]  # approach, three chunks before the grip, the grip, after it


def trajectory(*, uid=3, success=True, px=16):
    made = make_trajectory(CLOSING, uid=uid, success=success, last_steps=5)
    frame_NHWC = torch.zeros(len(made), px, px, 3, dtype=torch.uint8)
    frame_NHWC[:, 0] = 255  # the first row in memory is the floor's
    return replace(made, frame_NHWC=frame_NHWC, last_frame_HWC=torch.full((px, px, 3), 7, dtype=torch.uint8))


def outcomes(text: str) -> list:
    """`sf` = a success with uid 0, then a failure with uid 1."""
    return [make_trajectory([0], uid=uid, success=letter == "s") for uid, letter in enumerate(text)]


def uids(chosen) -> list[int]:
    return [t.episode.uid for t in chosen]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (VideoConfig(first=2, failures=0), [0, 1]),
        (VideoConfig(first=0, failures=2), [2, 4]),
        (VideoConfig(first=1, failures=1), [0, 2]),
        (VideoConfig(first=0, failures=0, per_group=1), [0, 1]),  # groups: even and odd uids
        (VideoConfig(first=0, failures=0, per_group=0), []),
    ],
)
def test_rules(rules, expected):
    shuffled = [outcomes("ssfsff")[i] for i in (5, 2, 0, 3, 1, 4)]
    assert uids(choose(shuffled, rules, lambda t: t.episode.uid % 2)) == expected


def test_what_is_left_out_may_be_forgotten_at_once():
    episodes, rules = outcomes("fssfsfffs"), VideoConfig(first=2, failures=2, per_group=2)
    group_of = lambda t: t.episode.uid % 3  # noqa: E731
    whole = uids(choose(episodes, rules, group_of))
    for seed in range(20):
        held = []
        for i in torch.randperm(len(episodes), generator=torch.Generator().manual_seed(seed)).tolist():
            held = choose([*held, episodes[i]], rules, group_of)
        assert uids(held) == whole


def test_pictures_stand_upright():
    frame = torch.arange(2 * 2 * 6, dtype=torch.uint8).view(2, 2, 6)  # channels 3 to 5 are the wrist's
    first, second, third, fourth = [0, 1, 2], [6, 7, 8], [12, 13, 14], [18, 19, 20]
    assert upright(frame, turned=False).tolist() == [[third, fourth], [first, second]]
    assert upright(frame, turned=True).tolist() == [[fourth, third], [second, first]]


def test_a_frame_per_chunk_and_one_of_the_end():
    frame_THWC = annotate(trajectory())
    assert frame_THWC.shape == (8, ABOVE + WIDTH + BELOW, WIDTH, 3)
    assert frame_THWC.dtype == np.uint8
    assert (frame_THWC[0, ABOVE + WIDTH - 3, 5] > 200).all()  # the floor is at the bottom
    assert (frame_THWC[0, ABOVE + 3, 5] < 50).all()
    assert (frame_THWC[-1, ABOVE + WIDTH // 2, 5] == 7).all()


def has(frame_HWC: np.ndarray, colour: str, rows: slice) -> bool:
    return bool((frame_HWC[rows] == ImageColor.getrgb(colour)).all(-1).any())


def test_the_end_says_how_it_ended():
    above = slice(0, ABOVE)
    success, failure = (annotate(trajectory(success=s)) for s in (True, False))
    assert has(success[-1], SUCCESS_COLOUR, above)
    assert has(failure[-1], FAILURE_COLOUR, above)
    assert not has(success[-2], SUCCESS_COLOUR, above)


def test_phase_and_kept_chunks_can_be_seen():
    phase = lambda frame, phase: has(frame, PHASE_COLOURS[phase], slice(0, ABOVE))  # noqa: E731
    frames = annotate(trajectory())
    assert phase(frames[0], APPROACH)
    assert not phase(frames[0], PRE_GRASP)
    assert phase(frames[1], PRE_GRASP)
    kept = annotate(trajectory(), torch.tensor([0, 1, 2, 3, 4, 5]))
    dropped = annotate(trajectory(), torch.tensor([1, 2, 3, 4, 5]))
    below = slice(ABOVE + WIDTH, None)
    blue = lambda frame: (frame[below] == ImageColor.getrgb(PHASE_COLOURS[APPROACH])).all(-1).sum()  # noqa: E731
    assert blue(dropped[3]) < 0.5 * blue(kept[3])
    assert (kept[0, :ABOVE] != dropped[0, :ABOVE]).any()  # the words
    assert (kept[3, :ABOVE] == dropped[3, :ABOVE]).all()


def test_long_instructions_stay_inside():
    short, long = (annotate(replace(trajectory(), instruction="put WWWW soup " * n))[0] for n in (1, 20))
    second, others = slice(int(1.3 * LINE), int(2.2 * LINE)), slice(int(2.3 * LINE), ABOVE)
    assert (long[:ABOVE, WIDTH - 2 :] == 255).all()
    assert (long[second] < 255).any()
    assert (short[second] == 255).all()
    assert (long[others] == short[others]).all()


def test_mp4_plays(tmp_path):
    frame_THWC = annotate(trajectory())
    write_mp4(tmp_path / "a.mp4", frame_THWC)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 5)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == len(frame_THWC) + HOLD
    for n in (0, 4, 7):
        assert abs(decoded[n].astype(int) - frame_THWC[n]).mean() < 3  # of 255: what the codec loses


def test_gif_holds_every_frame():
    frame_THWC = annotate(trajectory())
    image = Image.open(io.BytesIO(gif(frame_THWC)))
    assert image.format == "GIF"
    assert image.size == (WIDTH // 2, (ABOVE + WIDTH + BELOW) // 2)
    assert image.n_frames >= len(frame_THWC)  # repeated frames may be stored once


def test_file_name_says_what_is_in_it():
    assert file_name(trajectory(success=False)) == "task0_state0_failure_3"


def test_strips_show_successes_and_failures_beside_each_other():
    episodes = [trajectory(uid=0), trajectory(uid=1, success=False), trajectory(uid=2, success=False)]
    figure = draw_strips(episodes, kept={0: torch.tensor([4]), 1: torch.tensor([0])})
    left, right = figure.subfigs
    assert (left.get_suptitle(), right.get_suptitle()) == ("successes", "failures")
    shown = [[len(axes.images) for axes in half.axes] for half in (left, right)]
    assert shown == [[1] * 5 + [0] * 5, [1] * 10]
    # pictures of 8 frames: 0, 2, 4, 5, 7; the end is never pale
    alphas = [axes.images[0].get_alpha() for axes in left.axes[:5]]
    assert alphas == [0.3, 0.3, 1.0, 0.3, 1.0]
    assert [axes.images[0].get_alpha() for axes in right.axes[5:]] == [0.3] * 4 + [1.0]  # uid 2: not trained on


def test_without_failures_the_other_side_says_so():
    figure = draw_strips([trajectory(uid=uid) for uid in range(6)])
    assert figure.subfigs[0].get_suptitle() == "successes (4 of 6)"
    assert [text.get_text() for text in figure.subfigs[1].texts if text.get_text() == "none"] == ["none"]
