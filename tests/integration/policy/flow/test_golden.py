"""The networks give what the public classes gave (`tests/golden/*/`, lerobot 0.6.1) with the same weights."""

import json

import pytest
import torch
from torch.testing import assert_close

from tests.helpers.flow import GOLDEN, SETS, golden_arrays, golden_model
from vla_rl.functional.flow import times
from vla_rl.policy.flow.config import parse_config
from vla_rl.policy.flow.layers import time_embedding
from vla_rl.policy.flow.model import Inputs, positions
from vla_rl.policy.flow.pi import Pi
from vla_rl.policy.flow.smolvla import SmolVLA

CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(params=SETS)
def golden(request):
    model, arrays = golden_model(GOLDEN / request.param), golden_arrays(GOLDEN / request.param)
    pictures = list(arrays["images"].unbind(1))
    inputs = (pictures, arrays["image_mask"], arrays["token_ids"], arrays["token_mask"], arrays.get("state"))
    with torch.no_grad():
        return model, arrays, model.prefix(Inputs(*inputs))


def test_the_prefix(golden):
    _, arrays, prefix = golden
    mask = arrays["prefix_mask"]
    assert torch.equal(prefix.mask_NS, mask)
    assert torch.equal(positions(prefix.mask_NS), arrays["prefix_position"])
    assert_close(prefix.hidden_NSD[mask], arrays["prefix_hidden"][mask], **CLOSE)
    for name, part in (("prefix_keys", 0), ("prefix_values", 1)):
        for layer, cached in enumerate(prefix.cache):
            found, expected = (x.transpose(1, 2)[mask] for x in (cached[part], arrays[name][layer]))
            assert_close(found, expected, **CLOSE)


@torch.no_grad()
def test_the_velocity(golden):
    model, arrays, prefix = golden
    for x, t, expected in zip(arrays["velocity_x"], arrays["velocity_time"], arrays["velocity"], strict=True):
        assert_close(model.velocity(prefix, x, t, arrays.get("state"))[0], expected, **CLOSE)


def test_the_embedding_of_time(golden):
    model, arrays, _ = golden
    for t, expected in zip(arrays["velocity_time"], arrays["time_embedding"], strict=True):
        assert_close(time_embedding(t, model.config.expert.width, model.config.periods), expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_chain_of_eulers_steps(golden):
    model, arrays, prefix = golden
    x, t = arrays["noise"], times(10)
    for k in range(10):
        assert_close(x, arrays["euler_x"][k], **CLOSE)
        x = x - (t[k] - t[k + 1]) * model.velocity(prefix, x, t[k].expand(2), arrays.get("state"))[0]
    assert_close(x[..., :7], arrays["action_chunk"], **CLOSE)


@torch.no_grad()
def test_the_loss(golden):
    model, arrays, prefix = golden
    t, noise, data = arrays["loss_time"], arrays["loss_noise"], arrays["loss_actions"]
    x = t[:, None, None] * noise + (1 - t[:, None, None]) * data
    velocity, _ = model.velocity(prefix, x, t, arrays.get("state"))
    assert_close((noise - data - velocity).square(), arrays["loss"], atol=5e-5, rtol=0)


@torch.no_grad()
def test_what_is_behind_a_mask_does_not_matter(golden):
    model, arrays, prefix = golden
    pictures = [picture.clone() for picture in arrays["images"].unbind(1)]
    pictures[1][1] = 0.5  # the camera that is missing in the second row
    ids = torch.where(arrays["token_mask"], arrays["token_ids"], 7)
    other = model.prefix(Inputs(pictures, arrays["image_mask"], ids, arrays["token_mask"], arrays.get("state")))
    x, t = arrays["velocity_x"][0], arrays["velocity_time"][0]
    first, second = (model.velocity(p, x, t, arrays.get("state"))[0] for p in (prefix, other))
    assert torch.equal(first, second)


def test_checkpointing_changes_no_gradient(golden):
    model, arrays, _ = golden
    others = (arrays.get(name) for name in ("image_mask", "token_ids", "token_mask", "state"))
    inputs = (list(arrays["images"].unbind(1)), *others)
    gradients = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        x, t = arrays["velocity_x"][0], arrays["velocity_time"][0]
        model.velocity(model.prefix(Inputs(*inputs)), x, t, arrays.get("state"))[0].square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SETS)
def test_the_published_sizes(name):
    """From names alone, on the meta device."""
    raw = json.loads((GOLDEN / name / "config.json").read_text())
    raw |= {"max_action_dim": 32, "max_state_dim": 32, "num_vlm_layers": 16}
    raw |= {"vlm_model_name": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"} if raw["type"] == "smolvla" else {}
    published = json.loads((GOLDEN / name / "sizes.json").read_text())["published"]
    with torch.device("meta"):
        model = (SmolVLA if raw["type"] == "smolvla" else Pi)(parse_config(raw))
    shapes = [p.shape for p in model.state_dict().values()] + [torch.Size(s) for s in model.unused_shapes().values()]
    assert sum(shape.numel() for shape in shapes) == published["parameters"]
    assert len(shapes) == published["tensors"]
    if raw["type"] == "smolvla":
        expert = model.vlm_with_expert["lm_expert"]
        assert sum(p.numel() for p in expert.parameters()) == published["expert_parameters"]
