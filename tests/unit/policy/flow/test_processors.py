"""The processors give what lerobot's gave (`tests/golden/flow_processors`), and the rules one by one."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch.testing import assert_close

from tests.helpers.flow import GOLDEN, byte_tokenizer
from vla_rl.errors import UserError
from vla_rl.files import read_json
from vla_rl.policy.flow.checkpoint import read_statistics
from vla_rl.policy.flow.processors import (
    Normaliser,
    Processors,
    PromptRules,
    pad_columns,
    resize_with_padding,
    state_bins,
)
from vla_rl.types import Observation

FOLDER = GOLDEN / "flow_processors"
KINDS = {"smolvla": (28, 40), "pi0": (28, 28), "pi05": (28, 28)}  # height and width of a picture
CAMERAS = ("image", "wrist_image")


@pytest.fixture(params=KINDS)
def case(request):
    """The processors of a kind, and its arrays."""
    kind, folder = request.param, FOLDER / request.param
    arrays = {name: value for name, value in np.load(FOLDER / "processors.npz").items()}
    pipeline = read_json(folder / "policy_preprocessor.json")
    steps = {step["registry_name"]: step["config"] for step in pipeline["steps"]}
    norm_map, tokens = steps["normalizer_processor"]["norm_map"], steps["tokenizer_processor"]
    statistics = read_statistics(folder, pipeline, "policy_preprocessor.json")

    def normaliser(of, feature):
        found = {n.removeprefix(f"{feature}."): v for n, v in statistics.items() if n.startswith(f"{feature}.")}
        return Normaliser(norm_map[of], found)

    processors = Processors(
        kind, cameras=CAMERAS, missing=1 if kind == "smolvla" else 2, picture_px=KINDS[kind], proprio_dims=5,
        action_dims=4, state=normaliser("STATE", "observation.state"), action=normaliser("ACTION", "action"),
        state_width=8, tokenizer=byte_tokenizer(), vocabulary=256,
        prompt=PromptRules(kind == "pi05", tokens["max_length"], tokens["padding"] == "max_length"),
    )  # fmt: skip
    return kind, processors, arrays


def test_pictures(case):
    kind, processors, arrays = case
    found = []
    for camera in CAMERAS:  # of different sizes here, which one simulator's never are
        turned = torch.from_numpy(arrays[f"raw_{camera}"]).flip(1, 2)  # as rendered: the rules turn it back
        found += processors.pictures(turned)
    expected = torch.from_numpy(arrays[f"{kind}_images"]).unbind(1)
    for picture, golden in zip(found, expected, strict=False):
        assert_close(picture, golden, atol=1e-6, rtol=0)
    for missing in expected[2:]:
        assert (missing == -1).all()


def test_states_prompts_and_tokens(case):
    kind, processors, arrays = case
    state = processors.state.normalize(torch.from_numpy(arrays["raw_state"]))
    golden = torch.from_numpy(arrays[f"{kind}_state_normalized"])
    assert ((state - golden).abs() <= 1e-6 * golden.abs().clip(min=1)).all()
    prompts = processors.prompts(arrays["raw_task"].tolist(), state)
    assert prompts == arrays[f"{kind}_prompt"].tolist()
    ids, mask = processors.tokens(prompts)
    assert torch.equal(mask, torch.from_numpy(arrays[f"{kind}_token_mask"]))
    assert ids.shape == arrays[f"{kind}_token_ids_stand_in"].shape
    if kind != "pi05":
        assert torch.equal(pad_columns(state, 8)[:, 5:], torch.zeros(2, 3))


def test_actions_both_ways(case):
    kind, processors, arrays = case
    raw = torch.from_numpy(arrays["raw_action"])
    assert_close(processors.targets(raw, 6), torch.from_numpy(arrays[f"{kind}_action_padded"]), atol=1e-6, rtol=0)
    output = torch.from_numpy(arrays["model_output"])
    assert_close(processors.action.unnormalize(output), torch.from_numpy(arrays[f"{kind}_action"]), atol=1e-6, rtol=0)
    assert processors.commands(100 * output).abs().max() == 1  # what robosuite takes


def test_bins_of_the_state():
    arrays = np.load(FOLDER / "processors.npz")
    assert state_bins(torch.from_numpy(arrays["bin_state"])).tolist() == arrays["bin_index"].tolist()


def test_a_longer_state_in_the_prompt(case):
    kind, processors, _ = case
    if kind != "pi05":
        return
    processors.prompt = PromptRules(True, 200, True, state_numbers=7)
    (prompt,) = processors.prompts(["open"], torch.zeros(1, 5))
    assert prompt == "Task: open, State: 128 128 128 128 128 128 128;\nAction: "


def test_padding_by_hand():
    # 1 x 2 pixels for 4 x 4: twice as large is 2 x 4, two rows missing
    picture = torch.ones(1, 1, 1, 2)
    centred = resize_with_padding(picture, 4, 4, centred=True)
    assert centred[0, 0].sum(1).tolist() == [0, 4, 4, 0]
    assert resize_with_padding(picture, 4, 4, centred=False)[0, 0].sum(1).tolist() == [0, 0, 4, 4]


def test_a_feature_without_statistics_passes_unchanged():
    value = torch.tensor([[0.3, -7.0]])
    for mode in ("MEAN_STD", "QUANTILES", "IDENTITY"):
        assert torch.equal(Normaliser(mode, {}).normalize(value), value)
        assert torch.equal(Normaliser(mode, {}).unnormalize(value), value)


def test_a_prompt_that_is_too_long_loses_its_end(case):
    _, processors, _ = case
    ids, mask = processors.tokens(["x" * 500])
    assert ids.shape == (1, processors.prompt.slots)
    assert mask.all()


@pytest.mark.parametrize(("mode", "low", "high"), [("QUANTILE10", "q10", "q90"), ("MIN_MAX", "min", "max")])
def test_the_other_ranges(mode, low, high):
    # from -1 to 3: 0 is a quarter of the way, -1 + 2 / 4
    normaliser = Normaliser(mode, {low: torch.tensor([-1.0]), high: torch.tensor([3.0])})
    assert normaliser.normalize(torch.tensor([0.0])).item() == -0.5
    assert normaliser.unnormalize(torch.tensor([-0.5])).item() == 0


def test_the_epsilon_of_the_file():
    spread = {"mean": torch.zeros(1), "std": torch.zeros(1)}
    assert Normaliser("MEAN_STD", spread, eps=0.5).normalize(torch.tensor([2.0])).item() == 4
    constant = {"q01": torch.zeros(1), "q99": torch.zeros(1)}
    assert Normaliser("QUANTILES", constant, eps=0.5).normalize(torch.tensor([2.0])).item() == 7  # 2 x 2 / .5 - 1


def test_the_whole_way(case):
    """From an observation as the simulator gives it to all that the model takes."""
    kind, processors, arrays = case
    small = torch.from_numpy(arrays["raw_image"]).flip(1, 2)
    observation = Observation(
        torch.cat([small, small], dim=-1), torch.from_numpy(arrays["raw_state"]), arrays["raw_task"].tolist()
    )
    inputs = processors.inputs(observation, torch.device("cpu"))
    assert torch.equal(inputs.picture_mask_NV, torch.from_numpy(arrays[f"{kind}_image_mask"]))
    golden = torch.from_numpy(arrays[f"{kind}_images"])[:, [0, 0, *range(2, len(inputs.pixels))]]
    assert_close(torch.stack(inputs.pixels, dim=1), golden, atol=1e-6, rtol=0)
    assert torch.equal(inputs.mask_NT, torch.from_numpy(arrays[f"{kind}_token_mask"]))
    if kind == "pi05":
        assert inputs.state_ND is None
    else:
        state = torch.from_numpy(arrays[f"{kind}_state"])
        assert ((inputs.state_ND - state).abs() <= 1e-6 * state.abs().clip(min=1)).all()


def test_an_observation_that_does_not_fit(case):
    _, processors, _ = case
    cpu, frame = torch.device("cpu"), torch.zeros(1, 8, 8, 6, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"reads 2 cameras \(image, wrist_image\), an observation has 1: .*\[image\]$"):
        processors.inputs(Observation(frame[..., :3], torch.zeros(1, 5), ["a"]), cpu)
    with pytest.raises(UserError, match="reads 5 numbers of proprioception, an observation has 8"):
        processors.inputs(Observation(frame, torch.zeros(1, 8), ["a"]), cpu)
    processors.state = Normaliser(processors.state.mode, {})
    with pytest.raises(UserError, match="no statistics of observation.state, which"):
        processors.inputs(Observation(frame, torch.zeros(1, 5), ["a"]), cpu)
    processors.action = Normaliser(processors.action.mode, {})
    with pytest.raises(UserError, match="no statistics of action, which"):
        processors.commands(torch.zeros(1, 2, 4))


def test_the_first_token_of_pi(case):
    kind, processors, _ = case
    tokenizer = Tokenizer.from_str(byte_tokenizer())
    tokenizer.add_special_tokens(["<bos>"])  # id 256
    for adds_it_itself in (False, True):
        if adds_it_itself:
            tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 256)])
        again = Processors(
            kind, cameras=CAMERAS, missing=0, picture_px=(28, 28), proprio_dims=5, action_dims=4, state_width=8,
            state=processors.state, action=processors.action, prompt=processors.prompt,
            tokenizer=tokenizer.to_str(), vocabulary=257,
        )  # fmt: skip
        ids, mask = again.tokens(["ab"])
        begins = kind != "smolvla" or adds_it_itself
        assert (ids[0, 0] == 256) == begins
        assert mask.sum() == 2 + begins
