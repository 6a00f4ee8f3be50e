import pytest
import torch

from tests.helpers.policies import make_observation
from vla_rl.errors import UserError
from vla_rl.policy.openvla_oft.actions import (
    Bounds,
    Statistics,
    detokenize,
    gripper_to_env,
    gripper_to_model,
    measure_statistics,
    tokenize,
)
from vla_rl.policy.openvla_oft.tiny import random_policy


def test_tokenize_by_hand():
    # 256 edges from -1 to 1, 2/255 apart. digitize counts the edges <= a; n = 256 - count.
    # a = -1: one edge -> 255. a = 1: all 256 -> 0. a = 0.999: 255 edges -> 1. a = 0: edges 0..127 -> 128.
    # Out of range is clipped: 7 -> 0.
    assert tokenize(torch.tensor([-1.0, 1.0, 0.999, 0.0, 7.0])).tolist() == [255, 0, 1, 128, 0]


def test_detokenize_by_hand():
    # Centre of bin b is -1 + (2b + 1) / 255, b = clip(255 - n, 0, 254).
    # n = 255: b = 0, -254/255. n = 254: b = 1, -252/255. n = 128: b = 127, 0. n = 1 and n = 0: b = 254, 254/255.
    centres = detokenize(torch.tensor([255, 254, 128, 1, 0])) * 255
    torch.testing.assert_close(centres, torch.tensor([-254.0, -252.0, 0.0, 254.0, 254.0], dtype=torch.float64))


def test_a_token_survives_the_round_trip():
    token = torch.arange(1, 256)  # 0 shares its centre with 1
    assert torch.equal(tokenize(detokenize(token)), token)


def test_unnormalize_by_hand():
    bounds = Bounds.from_json({"q01": [-0.5, 0.0], "q99": [1.5, 1.0], "mask": [True, False]}, "here")
    # 0.5 (0.5 + 1) (2 + 1e-8) - 0.5 = 1; the gripper is left as it is
    value = bounds.unnormalize(torch.tensor([0.5, 0.25], dtype=torch.float64))
    torch.testing.assert_close(value, torch.tensor([1.0, 0.25], dtype=torch.float64), atol=1e-7, rtol=0)
    back = bounds.normalize(value)
    torch.testing.assert_close(back, torch.tensor([0.5, 0.25], dtype=torch.float64), atol=1e-12, rtol=0)
    assert bounds.normalize(torch.tensor([9.0, 9.0])).tolist() == [1.0, 1.0]


def test_gripper():
    # model: 1 = open; robosuite: -1 opens
    assert gripper_to_env(torch.tensor([1.0, 0.6, 0.4, 0.0])).tolist() == [-1.0, -1.0, 1.0, 1.0]
    assert gripper_to_model(torch.tensor([-1.0, 1.0])).tolist() == [1.0, 0.0]


def entry(value=1.0):
    return {"action": {"q01": [-value] * 7, "q99": [value] * 7, "mask": [True] * 6 + [False]}}


def test_statistics_are_found_by_name_or_with_no_noops():
    both = {"libero_object_no_noops": entry(1.0), "libero_goal": entry(2.0)}
    assert Statistics.select(both, "libero_object").key == "libero_object_no_noops"
    assert Statistics.select(both, "libero_goal").action.q99[0] == 2.0
    assert Statistics.select({"only": entry()}, None).key == "only"


def test_statistics_that_cannot_be_chosen():
    both = {"a": entry(), "b": entry()}
    with pytest.raises(ValueError, match=r"2 datasets \(a, b\), choose one: policy.unnorm_key=a"):
        Statistics.select(both, None)
    with pytest.raises(ValueError, match=r"no statistics for 'c'.*it has: a, b"):
        Statistics.select(both, "c")
    with pytest.raises(ValueError, match="'proprio' of 'a' is missing"):
        Statistics.select(both, "a", proprio_dims=8)


def test_measured_statistics():
    ramp = torch.arange(101.0)  # quantiles of 0..100 are the percentages
    measured = measure_statistics(ramp[:, None].expand(-1, 7), -ramp[:, None].expand(-1, 8))
    assert measured["action"]["q01"] == pytest.approx([1.0] * 7)
    assert measured["action"]["q99"] == pytest.approx([99.0] * 7)
    assert measured["action"]["mask"] == [True] * 6 + [False]
    assert measured["proprio"]["min"] == [-100.0] * 8
    assert measured["num_transitions"] == 101


def test_demonstrations_say_how_many_numbers_an_action_has():
    """Four, as in Meta-World: x, y, z, gripper."""
    command_TA = torch.tensor([[0.5, 0.0, -0.5, -1.0], [-0.5, 0.2, 0.5, 1.0]])
    policy = random_policy()
    policy.fit_normalisation("world", command_TA, torch.zeros(2, 4))
    assert policy.act(make_observation(1), [0], 0.0).command_NLA.shape == (1, 8, 4)
    torch.testing.assert_close(policy.command(detokenize(policy.tokenize(command_TA))), command_TA, atol=0.02, rtol=0)
    with pytest.raises(UserError, match="actions have 7 dimensions, the policy's 4"):
        policy.fit_normalisation("other", torch.zeros(2, 7), torch.zeros(2, 4))
