"""The published implementation's numbers, reproduced (tests/golden/openvla_oft_*)."""

import json

import pytest
import torch

from tests.helpers.policies import GOLDEN
from vla_rl.policy import load_pretrained
from vla_rl.policy.openvla_oft.actions import detokenize
from vla_rl.policy.openvla_oft.config import TIMM_TOWERS, parse_config
from vla_rl.policy.openvla_oft.model import OpenVLAOFT
from vla_rl.policy.openvla_oft.vision import unused_shapes

TOLERANCE = 1e-4  # the reference's own noise is 1e-6; other kernels than its are allowed a hundred times that


def without_bos(ids, mask):
    """What the model takes: prompts after BOS, padded on the left."""
    mask = mask.bool()
    first = mask.int().argmax(dim=1, keepdim=True)
    return ids[:, 1:], mask.scatter(1, first, False)[:, 1:]


@torch.no_grad()
def test_vision_and_projector(golden_policy, golden_arrays):
    model = golden_policy.model
    features = model.vision_backbone(golden_arrays["pixel_values"])
    torch.testing.assert_close(features, golden_arrays["vision_features"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(model.projector(features), golden_arrays["projected"], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_logits(golden_policy, golden_arrays):
    ids, mask = without_bos(golden_arrays["input_ids"], torch.ones_like(golden_arrays["input_ids"]))
    logits = golden_policy.model(ids, mask, golden_arrays["pixel_values"])
    torch.testing.assert_close(logits, golden_arrays["logits_last256"], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_greedy_tokens_and_actions_of_ragged_prompts(golden_policy, golden_arrays):
    ids, mask = without_bos(golden_arrays["padded_input_ids"], golden_arrays["padded_attention_mask"])
    assert len(set(mask.sum(1).tolist())) > 1
    token = golden_policy.model(ids, mask, golden_arrays["pixel_values"]).argmax(-1)
    assert torch.equal(token + golden_policy.model.config.first_action_id, golden_arrays["greedy_token_ids"])
    action = golden_policy.statistics.action.unnormalize(detokenize(token.view(-1, 8, 7)))
    # the same float64 arithmetic as the reference's numpy
    torch.testing.assert_close(action, golden_arrays["greedy_actions"], atol=1e-12, rtol=0)


@torch.no_grad()
def test_a_padded_row_equals_the_row_alone(golden_policy, golden_arrays):
    ids, mask = without_bos(golden_arrays["padded_input_ids"], golden_arrays["padded_attention_mask"])
    pixels = golden_arrays["pixel_values"]
    together = golden_policy.model(ids, mask, pixels)
    for n in range(len(ids)):
        alone = golden_policy.model(ids[n : n + 1, mask[n]], mask[n : n + 1, mask[n]], pixels[n : n + 1])
        torch.testing.assert_close(together[n : n + 1], alone, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_actions_see_the_stop_token(golden_policy, golden_arrays):
    """It is the last token: with a causal mask no action would depend on it."""
    ids, mask = without_bos(golden_arrays["input_ids"], torch.ones_like(golden_arrays["input_ids"]))
    before = golden_policy.model(ids, mask, golden_arrays["pixel_values"])
    embedding = golden_policy.model.language_model.model.embed_tokens.weight
    kept = embedding[2].clone()
    embedding[2] += 1.0
    after = golden_policy.model(ids, mask, golden_arrays["pixel_values"])
    embedding[2] = kept
    assert ((after - before)[:, 0].abs().amax(-1) > 1e-3).all()


@torch.no_grad()
def test_every_row_sees_every_row(golden_policy):
    """Below the sequence's order: the first row of Llama changes with its last input, and the last with its first."""
    llama = golden_policy.model.language_model.model
    x_BSD = torch.randn(1, 9, llama.config.width, generator=torch.Generator().manual_seed(0))
    position_BS = torch.arange(9)[None]
    before = llama(x_BSD, position_BS, key_mask=torch.ones(1, 1, 1, 9, dtype=torch.bool), tail=9)
    for changed, read in ((-1, 0), (0, -1)):
        other = x_BSD.clone()
        other[:, changed] += 1.0
        after = llama(other, position_BS, key_mask=torch.ones(1, 1, 1, 9, dtype=torch.bool), tail=9)
        assert (after - before)[:, read].abs().max() > 1e-3


def layout_7b():
    """Name and size of every tensor of the 7B, built on the meta device."""
    raw = json.loads((GOLDEN / "config.json").read_text())
    del raw["tiny_overrides"]
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    raw |= {"image_sizes": [224, 224], "text_config": raw["text_config"] | sizes}
    config = parse_config(raw)
    assert config.towers == tuple(TIMM_TOWERS.values())
    with torch.device("meta"):
        model = OpenVLAOFT(config)
    return {name: value.shape for name, value in model.state_dict().items()} | unused_shapes(config.towers)


def test_the_7b_has_its_published_number_of_parameters():
    assert sum(shape.numel() for shape in layout_7b().values()) == 7_541_237_184


def test_the_7b_has_the_published_keys():
    """The golden set's, with as many blocks and layers as the 7B has."""
    published = set()
    for key in json.loads((GOLDEN / "state_dict_shapes.json").read_text())["shapes"]:
        counts = {".featurizer.blocks.0.": 24, ".fused_featurizer.blocks.0.": 27, ".layers.0.": 32}
        count = next((n for part, n in counts.items() if part in key), None)
        if count:
            published |= {key.replace(".0.", f".{i}.") for i in range(count)}
        elif ".blocks." not in key and ".layers." not in key:
            published.add(key)
    assert layout_7b().keys() == published


def test_a_causal_mask_is_found_out_at_load(golden_folder, monkeypatch):
    plain = torch.nn.functional.scaled_dot_product_attention

    def causal(q, k, v, attn_mask=None, is_causal=False):
        return plain(q, k, v, is_causal=True)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", causal)
    with pytest.raises(RuntimeError, match="attention is causal"):
        load_pretrained(golden_folder)
