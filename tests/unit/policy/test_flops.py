import pytest

from vla_rl.policy.flops import update_flops
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
