"""A policy whose weights are kept in bfloat16, and computes in float32."""

import pytest
import torch

from tests.helpers.policies import make_observation
from vla_rl.policy.memory import plan_memory
from vla_rl.policy.openvla_oft.load import load_policy

GB = 10**9


@pytest.fixture
def slow_cpu(monkeypatch):
    monkeypatch.setattr("vla_rl.policy.openvla_oft.load.slow_in_bfloat16", lambda: True)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_policy_kept_in_bfloat16_answers_and_learns_as_its_rounded_weights_in_float32(slow_cpu, checkpointing):
    options = {"lora": {"r": 2, "alpha": 2}, "gradient_checkpointing": checkpointing}
    kept = load_policy("shipped:object_tiny", dtype="bfloat16", **options)
    whole = load_policy("shipped:object_tiny", **options)
    stored = kept.state_dict()
    whole.load_state_dict({name: stored[name].float() for name in whole.state_dict()})
    assert {p.dtype for p in kept.parameters() if p.dim() == 2 and not p.requires_grad} == {torch.bfloat16}
    observation = make_observation(2)
    gradients = []
    for policy in (kept, whole):
        with torch.no_grad():
            for name, p in policy.named_parameters():  # the second factor starts at zero
                if "lora_B" in name:
                    p.fill_(0.01)
        logits = policy.logits(observation)
        logits.square().sum().backward()
        gradients.append((logits, {name: p.grad for name, p in policy.named_parameters() if p.requires_grad}))
    (got, got_grad), (want, want_grad) = gradients
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)  # in bfloat16: 1e-2
    for name, gradient in want_grad.items():
        torch.testing.assert_close(got_grad[name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def test_the_memory_plan_counts_float32_activations_and_no_second_copy():
    options = {"checkpoint": None, "dtype": "bfloat16", "lora": {"r": 2, "alpha": 2}}
    half, cast, whole = (
        plan_memory(options | {"dtype": dtype}, rows=1, optimizer="adamw", available=GB, in_float32=cast)
        for dtype, cast in (("bfloat16", False), ("bfloat16", True), ("float32", False))
    )
    assert cast.per_row == pytest.approx(whole.per_row, rel=0.02)
    assert cast.per_row > 1.4 * half.per_row
    assert half.weights < cast.weights < 1.05 * half.weights
    assert (cast.trainable, cast.optimizer) == (half.trainable, half.optimizer)
