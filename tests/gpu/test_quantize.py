"""Bases of 4 and 8 bits on a GPU."""

import pytest
import torch

from vla_rl.policy import load_policy
from vla_rl.types import Observation


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_move_to_a_gpu_quantises(kind):
    policy = load_policy("shipped:object_tiny", lora={"r": 4, "alpha": 8}, quantization=kind, dtype="bfloat16")
    weight = policy.model.language_model.model.layers[0].mlp.up_proj.base_layer.weight
    assert weight.dtype == torch.bfloat16
    policy.to("cuda")
    weight = policy.model.language_model.model.layers[0].mlp.up_proj.base_layer.weight
    assert weight.dtype in (torch.uint8, torch.int8)
    frame_NHWC = torch.arange(128 * 128 * 3, dtype=torch.uint8).reshape(1, 128, 128, 3)
    assert policy.logits(Observation(frame_NHWC, torch.zeros(1, 8), ["pick up the soup"])).isfinite().all()
