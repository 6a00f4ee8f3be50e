"""Perturbations: pictures by hand, what a list in the conf means, and what a draw depends on."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

from vla_rl.errors import UserError
from vla_rl.sim.perturb.env import PerturbedEnv, perturbed
from vla_rl.sim.perturb.pictures import Blur, blurred, gaussian_weights, noisy, occluded
from vla_rl.sim.perturb.registry import PERTURBATIONS, parse_perturbations
from vla_rl.sim.perturb.wording import reworded
from vla_rl.sim.perturb.world import CameraPose, InitialState, Light, quaternion_product, turned


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_gaussian_weights_follow_the_formula():
    edge = math.exp(-1 / (2 * 0.8**2))  # a kernel of 3 has sigma .3 (1 - 1) + .8
    expected = np.array([edge, 1, edge]) / (1 + 2 * edge)
    assert gaussian_weights(3) == pytest.approx(expected)
    assert gaussian_weights(7).sum() == pytest.approx(1)


def test_blur_by_hand():
    frame = np.zeros((3, 4, 1), np.uint8)
    frame[1, 1] = 160
    frame[0, 3] = 16
    quarter = np.array([0.25, 0.5, 0.25])
    # rows first: column 1 is 40 80 40, column 3 (its border goes on above) 12 4 0; then along the columns
    expected = [[10, 20, 13, 9], [20, 40, 21, 3], [10, 20, 10, 0]]
    assert blurred(frame, quarter)[..., 0].tolist() == expected


def test_blur_leaves_a_plain_picture_alone():
    plain = np.full((6, 5, 3), 200, np.uint8)
    assert (Blur(kernel=5).picture(plain, rng()) == plain).all()


@pytest.mark.parametrize(("share", "covered"), [(0.5, 8), (0.25, 4), (1.0, 16)])
def test_occlusion_blacks_out_that_many_cells(share, covered):
    white = np.full((10, 8, 3), 255, np.uint8)  # 4 x 4 cells, of 2 or 3 rows and 2 columns
    seen = occluded(white, share, 4, rng(1))
    starts_of_cells = np.ix_([0, 3, 5, 8], [0, 2, 4, 6])  # row h is of cell 4 h // 10
    assert (seen[starts_of_cells][..., 0] == 0).sum() == covered
    assert set(np.unique(seen)) <= {0, 255}
    assert not (seen == occluded(white, share, 4, rng(2))).all() or share == 1


def test_noise_has_its_size_and_is_clipped():
    grey = np.full((50, 50, 3), 128, np.uint8)
    change = noisy(grey, 0.1, rng()).astype(float) - 128
    assert change.std() == pytest.approx(25.5, rel=0.05)
    assert abs(change.mean()) < 1
    # not wrapped around: 6 standard deviations are 153
    assert noisy(np.full((20, 20, 3), 255, np.uint8), 0.1, rng()).min() > 100
    assert noisy(np.zeros((20, 20, 3), np.uint8), 0.1, rng()).max() < 155


def test_rotations_by_hand():
    z = np.array([0.0, 0.0, 1.0])
    assert turned(np.array([1.0, 0.0, 2.0]), z, math.pi / 2) == pytest.approx([0, 1, 2])
    quarter = np.array([math.sqrt(0.5), 0, 0, math.sqrt(0.5)])  # 90 degrees around z
    assert quaternion_product(quarter, quarter) == pytest.approx([0, 0, 0, 1])
    i, j = np.array([0.0, 1, 0, 0]), np.array([0.0, 0, 1, 0])
    assert quaternion_product(i, j) == pytest.approx([0, 0, 0, 1])  # i j = k


def test_another_wording_is_never_the_same_sentence():
    sentences = {reworded("pick up the soup and place it in the basket", rng(seed)) for seed in range(40)}
    assert len(sentences) > 10
    assert all("soup" in s and "basket" in s and "pick up" not in s for s in sentences)
    assert all(reworded("reach the goal", rng(seed)) != "reach the goal" for seed in range(40))


class FakeCamera:
    """What a perturbation changes of a model, for two cameras and one lamp."""

    def __init__(self) -> None:
        lamp = {f"light_{name}": np.full((1, 3), 0.5) for name in ("ambient", "diffuse", "specular")}
        head = SimpleNamespace(ambient=np.ones(3), diffuse=np.ones(3), specular=np.ones(3))
        self.id = 1
        self.model = SimpleNamespace(
            cam_pos=np.zeros((2, 3)),
            cam_quat=np.tile([1.0, 0, 0, 0], (2, 1)),
            light_dir=np.array([[0.0, 0, -1]]),
            vis=SimpleNamespace(headlight=head),
            **lamp,
        )


def test_the_camera_moves_that_far_and_turns_that_much():
    camera = FakeCamera()
    CameraPose(metres=0.1, degrees=10).scene(camera, rng())
    assert np.linalg.norm(camera.model.cam_pos[1]) == pytest.approx(0.1)
    assert camera.model.cam_quat[1, 0] == pytest.approx(math.cos(math.radians(5)))
    assert np.linalg.norm(camera.model.cam_quat[1]) == pytest.approx(1)
    assert (camera.model.cam_pos[0] == 0).all()  # the other camera stays


def test_the_light_is_brighter_or_darker_and_turned():
    gains, angles = [], []
    for seed in range(20):
        camera = FakeCamera()
        Light(gain=2, tint=0, degrees=30).scene(camera, rng(seed))
        gains.append(float(camera.model.light_diffuse[0, 0] / 0.5))
        head = camera.model.vis.headlight
        for lamp in (head.ambient, head.diffuse, head.specular):
            assert lamp == pytest.approx(np.full(3, gains[-1]))
        for lamp in (camera.model.light_ambient, camera.model.light_specular):
            assert lamp == pytest.approx(np.full((1, 3), gains[-1] / 2))
        assert np.linalg.norm(camera.model.light_dir[0]) == pytest.approx(1)
        angles.append(math.degrees(math.acos(-camera.model.light_dir[0, 2])))
    assert set(gains) == {0.5, 2.0}
    assert 20 < max(angles) <= 30 + 1e-6  # all of it where the axis is across


def test_the_channels_of_the_light_differ_by_the_tint():
    colours = []
    for seed in range(40):
        camera = FakeCamera()
        Light(gain=1, tint=0.4, degrees=0).scene(camera, rng(seed))
        colours.append(camera.model.vis.headlight.ambient)
        assert (camera.model.light_dir == [[0, 0, -1]]).all()
    assert 0.8 <= np.min(colours) < 0.85 and 1.15 < np.max(colours) <= 1.2


def test_the_arm_starts_up_to_that_many_degrees_away():
    offset_rad = InitialState(degrees=5).start({"init_state": 3}, rng())["arm_offset_rad"]
    assert offset_rad.shape == (7,)
    assert -math.radians(5) <= offset_rad.min() < 0 < offset_rad.max() <= math.radians(5)


class FakeWorld(gymnasium.Env):
    """A grey picture per camera; remembers the reset's options."""

    def __init__(self, task: int) -> None:
        self.task, self.cameras = task, [FakeCamera()]

    def reset(self, *, seed=None, options=None):
        self.options = options
        return self._outcome()

    def step(self, command):
        observation, info = self._outcome()
        return observation, 0.0, False, False, info

    def _outcome(self):
        return {"frame": np.full((16, 16, 6), 100, np.uint8)}, {"instruction": "put the bowl on the plate"}


ALL = parse_perturbations(list(PERTURBATIONS))


def episode(env: PerturbedEnv, seed: int = 7, init_state: int = 3) -> tuple[list[np.ndarray], str, list]:
    """Frames, instruction, and what of the world was drawn."""
    observation, info = env.reset(seed=seed, options={"init_state": init_state})
    frames = [observation["frame"]]
    frames += [env.step(np.zeros((1, 7)))[0]["frame"] for _ in range(2)]
    inner = env.unwrapped
    model = inner.cameras[0].model
    head = model.vis.headlight
    drawn = [inner.options["arm_offset_rad"], model.cam_pos, model.cam_quat, model.light_dir]
    drawn += [model.light_ambient, model.light_diffuse, model.light_specular]
    drawn += [head.ambient, head.diffuse, head.specular]
    return frames, info["instruction"], [array.copy() for array in drawn]


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return all((a == b).all() for a, b in zip(left, right, strict=True))


def test_an_episode_is_perturbed_alike_whatever_ran_before():
    frames, instruction, world = episode(PerturbedEnv(FakeWorld(0), ALL))
    used = PerturbedEnv(FakeWorld(0), ALL)
    episode(used, seed=1, init_state=9)
    again, wording, drawn = episode(used)
    assert same(frames, again)
    assert same(world, drawn)
    assert wording == instruction != "put the bowl on the plate"
    for before, after in itertools.pairwise(frames):
        assert not (before == after).all()  # noise and occlusion are drawn anew at every decision
    assert not (frames[0][..., :3] == frames[0][..., 3:]).all()  # and for every camera


def test_episodes_of_one_initial_state_share_the_world_and_not_the_noise():
    env = PerturbedEnv(FakeWorld(0), ALL)
    frames, instruction, world = episode(env, seed=7)
    others, wording, drawn = episode(env, seed=8)
    assert same(world, drawn)
    assert wording == instruction
    assert not same(frames, others)
    for elsewhere in (episode(env, init_state=4)[2], episode(PerturbedEnv(FakeWorld(1), ALL))[2]):
        assert not any((a == b).all() for a, b in zip(world, elsewhere, strict=True))


def test_each_perturbation_has_draws_of_its_own():
    env = PerturbedEnv(FakeWorld(0), ALL)
    env.reset(seed=1, options={"init_state": 2})
    for generator in (env._of_world, lambda name: env._of_picture(name, 0)):
        assert len({generator(name).random() for name in ALL}) == len(ALL)


def test_without_perturbations_nothing_is_wrapped():
    assert perturbed(FakeWorld, {}) is FakeWorld


def test_a_name_alone_takes_the_defaults():
    assert parse_perturbations(["blur", {"occlusion": {"share": 0.3}}]) == {
        "blur": Blur(kernel=5),
        "occlusion": PERTURBATIONS["occlusion"](share=0.3),
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("blur", r"^sim.perturb must be a list of perturbations, got 'blur' \(sim.perturb=\["),
        ([3], r"must be a name, or one name with its options, got 3 \(sim.perturb=\["),
        ([{"blur": {}, "noise": {}}], "one name with its options, got"),
        ([{"blur": 5}], "one name with its options, got {'blur': 5}"),
        (["blurr"], r"no perturbation named 'blurr'; did you mean 'blur'\? Choices: blur, .*wording \(sim.perturb=\["),
        (["blur", {"blur": {"kernel": 7}}], "names 'blur' twice"),
        (
            [{"blur": {"size": 3}}],
            r"no option 'size'. Options: kernel \(sim.perturb=\[{blur: {kernel: 5}}\]\)",
        ),
        ([{"blur": {"kernel": 4}}], r"blur: kernel must be odd, got 4 \(sim.perturb=\[{blur: {kernel: 5}}\]\)"),
        ([{"blur": {"kernel": 2.5}}], "kernel must be an integer >= 3, got 2.5"),
        ([{"occlusion": {"share": 1.5}}], "share must be a number > 0 and <= 1, got 1.5"),
        ([{"noise": {"std": 0}}], "std must be a number > 0"),
        ([{"camera_pose": {"metres": -1}}], "metres must be a number >= 0"),
        ([{"light": {"gain": 0.5}}], "gain must be a number >= 1"),
        ([{"initial_state": {"degrees": 90}}], "degrees must be a number > 0 and <= 15"),
        ([{"wording": {"count": 2}}], "wording has no option 'count'. Options: none"),
    ],
)
def test_wrong_lists_are_refused_in_one_line(given, message):
    with pytest.raises(UserError, match=message) as error:
        parse_perturbations(given)
    assert "\n" not in str(error.value)
