import pytest
import torch

from tests.helpers.policies import make_observation, make_tiny_policy
from vla_rl.errors import UserError
from vla_rl.policy.activations import SavedBytes
from vla_rl.policy.memory import MemoryPlan, plan_memory
from vla_rl.policy.memory_check import POLICY, rows_that_fit

CPU = torch.device("cpu")
GB = 10**9


def plan(rows=12, optimizer="adamw", available=80 * GB, **options):
    return plan_memory(options, rows=rows, optimizer=optimizer, available=available)


def test_the_sum_by_hand():
    made = MemoryPlan(weights=10, trainable=4, gradients=4, optimizer=8, per_row=3, rows=5, reserve=100)
    assert (made.fixed, made.total) == (126, 141)


def test_weights_and_optimizer_of_the_small_policy_are_what_they_are():
    made = plan(checkpoint=None)
    size = 4 * sum(p.numel() for p in make_tiny_policy().parameters())
    assert (made.weights, made.trainable, made.gradients, made.optimizer) == (0, size, size, 2 * size)
    # two moments of one byte, and a float32 for 256 of each
    eighth = plan(checkpoint=None, optimizer="adamw8bit")
    assert eighth.optimizer == pytest.approx(2 * size / 4 * (1 + 4 / 256), abs=1)


def test_activations_are_what_autograd_keeps():
    """The same count on real tensors, by torch's plain attention, which the meta device has."""
    policy = make_tiny_policy()
    observation = make_observation(1)
    ids, mask = policy.prompts(observation.instruction_N)
    pixels = policy.pixels(observation.frame_NHWC, torch.float32)
    math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    meter = SavedBytes(policy.model.parameters())
    with math, meter.hooks():
        policy.model(ids, mask, pixels)
    assert plan(checkpoint=None).per_row == pytest.approx(1.1 * meter.of_part[None], rel=0.1)
    assert plan(checkpoint=None, gradient_checkpointing=True).per_row < 0.7 * plan(checkpoint=None).per_row


def test_shards_of_the_small_policy():
    whole = plan(checkpoint=None)
    half = plan_memory({"checkpoint": None}, rows=12, optimizer="adamw", available=80 * GB, shards=2)
    assert (half.trainable, half.gradients, half.optimizer) == (
        whole.trainable // 2,
        whole.gradients // 2,
        whole.optimizer // 2,
    )
    assert half.per_row == whole.per_row


def test_all_weights_are_not_trained_in_bfloat16():
    """At a learning rate of 1e-5 Adam moves a weight of .01 by a thousandth of it; bfloat16 rounds to a 256th."""
    weight = torch.tensor(0.01, dtype=torch.bfloat16)
    assert weight - 1e-5 == weight
    node = {"_target_": POLICY, "checkpoint": None, "dtype": "bfloat16"}
    with pytest.raises(UserError, match="all weights in bfloat16 .* policy.dtype=float32, or .*policy.lora={r: 32"):
        rows_that_fit(node, rows=1, optimizer="adamw", device=CPU)
    assert rows_that_fit(node | {"lora": {"r": 4, "alpha": 4}}, rows=1, optimizer="adamw", device=CPU) == 1
    assert rows_that_fit(node | {"dtype": "float32"}, rows=1, optimizer="adamw", device=CPU) == 1


def test_rows_are_found_or_kept(capsys):
    tiny = {"_target_": "vla_rl.load_policy", "checkpoint": None}
    assert rows_that_fit(tiny, rows=7, optimizer="adamw", device=CPU) == 7
    assert rows_that_fit(tiny, rows=None, optimizer="adamw", device=CPU) == 64  # the most
    assert capsys.readouterr().out == ""  # not worth a line
    mine = {"_target_": "my_pkg.MyPolicy"}
    assert rows_that_fit(mine, rows=7, optimizer="adamw", device=CPU) == 7
    with pytest.raises(UserError, match="grpo.micro_rows=12"):
        rows_that_fit(mine, rows=None, optimizer="adamw", device=CPU)


def test_a_checkpoint_that_is_not_there_is_a_users_mistake():
    node = {"_target_": "vla_rl.load_policy", "checkpoint": "shipped:none"}
    with pytest.raises(UserError, match="there is: .*shipped:object_tiny"):
        rows_that_fit(node, rows=1, optimizer="adamw", device=CPU)
