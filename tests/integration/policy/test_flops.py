import pytest

from vla_rl.policy.flops import flops_of, update_flops
from vla_rl.policy.flow import tiny
from vla_rl.policy.flow.one_row import on_meta, one_row
from vla_rl.policy.flow.policy import Noise
from vla_rl.policy.openvla_oft.config import parse_config
from vla_rl.policy.openvla_oft.tiny import tiny_config


def test_the_small_models_forward_by_hand():
    """Two operations for every weight and token, and 4 x queries x keys x width for each attention."""

    def vit(tokens, mlp):
        block = 2 * tokens * (4 * 96 * 96 + 2 * 96 * mlp) + 4 * tokens * tokens * 96
        return 2 * 64 * (3 * 16 * 16) * 96 + 2 * block  # 64 patches of 16 x 16 pixels; the last of 3 blocks is not run

    vision = vit(64 + 5, 384) + vit(64, 358)  # class token and 4 registers; 96 x 3.7362
    projector = 2 * 64 * (192 * 768 + 768 * 128 + 128 * 128)
    rows, tail = 1 + 64 + 1 + 24 + 56, 57  # BOS, patches, stop, prompt, slots; what the last layer computes
    mlp, square = 3 * 128 * 352, 128 * 128
    layer = 2 * rows * (4 * square + mlp) + 4 * rows * rows * 128
    last = 2 * rows * 2 * square + 2 * tail * (2 * square + mlp) + 4 * tail * rows * 128
    head = 2 * 56 * 128 * 256
    forward, _ = update_flops(parse_config(tiny_config()), 24, lora=None)
    assert forward == vision + projector + 3 * layer + last + head


def test_a_backward_without_lora_costs_two_forwards():
    forward, both = update_flops(parse_config(tiny_config()), 24, lora=None)
    assert both / forward == pytest.approx(3, abs=0.1)  # the pixels and the slots need no gradient


def test_a_small_flow_policys_row_by_hand():
    """A prefix of 64 patches and 24 words, and for each noisy step the 16 tokens of the expert, which see both."""
    mlp, square, narrow = 3 * 128 * 352, 128 * 128, 128 * 32  # keys and values have one head of four

    def layer(tokens, seen):
        return 2 * tokens * (2 * square + 2 * narrow + mlp) + 4 * tokens * seen * 128

    vision = 2 * 64 * (3 * 16 * 16) * 96 + 3 * (2 * 64 * (4 * 96 * 96 + 2 * 96 * 384) + 4 * 64 * 64 * 96)
    prefix = vision + 2 * 64 * 96 * 128 + 4 * layer(88, 88)
    time = 2 * 2 * square + 9 * 2 * 128 * 384  # its MLP, and scale, shift and gate of nine norms
    suffix = 2 * 16 * (8 * 128 + 128 * 8) + time + 4 * layer(16, 88 + 16)
    for joint, suffixes in ((False, 1), (True, 4)):
        policy = tiny.random_policy(Noise(steps=4, joint=joint))
        model = on_meta(policy.model)
        assert flops_of(lambda: one_row(model, policy))[0] == prefix + suffixes * suffix  # noqa: B023
        assert not any(p.is_meta for p in policy.model.parameters())


def test_a_frozen_prefix_costs_its_forward_alone():
    policy = tiny.random_policy(Noise())
    expert = set(map(id, policy.model.expert_parameters()))
    for parameter in policy.model.parameters():
        parameter.requires_grad_(id(parameter) in expert)
    model = on_meta(policy.model)
    forward, both = flops_of(lambda: one_row(model, policy))
    whole = tiny.random_policy(Noise())
    everything = on_meta(whole.model)
    assert flops_of(lambda: one_row(everything, whole))[0] == forward
    assert both < 1.5 * forward
