"""The model against transformers' own DINOv2, SigLIP and Llama, at sizes and with weights the golden outputs lack."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vla_rl.policy import load_pretrained
from vla_rl.policy.openvla_oft.config import parse_config
from vla_rl.policy.openvla_oft.model import OpenVLAOFT
from vla_rl.policy.openvla_oft.vision import unused_shapes

IMAGE_PX, PATCH_PX = 84, 14
PATCHES = (IMAGE_PX // PATCH_PX) ** 2
SIZES = {
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "image_sizes": [IMAGE_PX, IMAGE_PX],
    "n_action_bins": 256,
    "pad_to_multiple_of": 64,
    "text_config": {
        "vocab_size": 1064,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    "tiny_overrides": {
        "dinov2": {"embed_dim": 40, "depth": 5, "num_heads": 2},
        "siglip": {"embed_dim": 72, "depth": 3, "num_heads": 6},
    },
}


@pytest.fixture(scope="module")
def weights():
    config = parse_config(SIZES)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in OpenVLAOFT(config).state_dict().items()}
    generator = torch.Generator().manual_seed(5)
    shapes |= unused_shapes(config.towers)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def policy(weights, tiny_policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("oracle")
    content = {
        "config.json": SIZES,
        "preprocessor_config.json": tiny_policy.files.preprocessor,
        "dataset_statistics.json": tiny_policy.statistics.content,
    }
    for name, value in content.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "tokenizer.json").write_text(tiny_policy.files.tokenizer)
    save_file(weights, folder / "model.safetensors")
    return load_pretrained(folder)


def rename(weights, prefix, names):
    """timm's names to those of transformers; blocks keep their number."""
    renamed = {}
    for name, value in weights.items():
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            for old, new in names.items():
                name = name.replace(old, new)
            renamed[name] = value
    return renamed


def split_qkv(state, names):
    """The fused projection as three."""
    for name in [name for name in state if ".attn.qkv." in name]:
        for part, new in zip(state.pop(name).chunk(3), names, strict=True):
            state[name.replace("attn.qkv", new)] = part
    return state


def load(model, state):
    """What is missing is not used: final norms, mask tokens, heads."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("norm" in name or "mask_token" in name or "head" in name for name in missing), missing
    return model.eval()


def dino_features(weights, pixels):
    common = {"hidden_size": 40, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": IMAGE_PX}
    config = Dinov2WithRegistersConfig(**common, patch_size=PATCH_PX, layer_norm_eps=1e-6, num_register_tokens=4)
    names = {
        "attn.proj": "attention.o_proj",
        "ls1.scale_factor": "layer_scale1.lambda1",
        "ls2.scale_factor": "layer_scale2.lambda1",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "cls_token": "embeddings.cls_token",
        "reg_token": "embeddings.register_tokens",
        "pos_embed": "embeddings.position_embeddings",
    }
    state = rename(weights, "vision_backbone.featurizer.", names)
    state = split_qkv(state, [f"attention.{part}_proj" for part in "qkv"])
    state = {name.replace("blocks.", "encoder.layer."): value for name, value in state.items()}
    state = {"layernorm." + n[5:] if n.startswith("norm.") else n: v for n, v in state.items()}
    no_position = torch.zeros(1, 1, 40)  # of the class token
    state["embeddings.position_embeddings"] = torch.cat([no_position, state["embeddings.position_embeddings"]], dim=1)
    hidden = load(Dinov2WithRegistersModel(config), state)(pixels, output_hidden_states=True).hidden_states
    return hidden[-2][:, 5:]


def siglip_features(weights, pixels):
    config = SiglipVisionConfig(
        hidden_size=72,
        intermediate_size=int(72 * 3.7362),
        num_hidden_layers=3,
        num_attention_heads=6,
        image_size=IMAGE_PX,
        patch_size=PATCH_PX,
        hidden_act="gelu",  # timm's
        layer_norm_eps=1e-6,
        vision_use_head=False,
    )
    names = {
        "attn.proj": "self_attn.out_proj",
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "patch_embed.proj": "embeddings.patch_embedding",
        "pos_embed": "embeddings.position_embedding.weight",
    }
    state = rename(weights, "vision_backbone.fused_featurizer.", names)
    state = {name: value for name, value in state.items() if not name.startswith(("attn_pool", "norm."))}
    state = split_qkv(state, [f"self_attn.{part}_proj" for part in "qkv"])
    state["embeddings.position_embedding.weight"] = state["embeddings.position_embedding.weight"][0]
    state = {name.replace("blocks.", "encoder.layers."): v for name, v in state.items()}
    return load(SiglipVisionModel(config), state)(pixels, output_hidden_states=True).hidden_states[-2]


@torch.no_grad()
def test_vision_features(policy, weights):
    pixels = torch.randn(2, 6, IMAGE_PX, IMAGE_PX, generator=torch.Generator().manual_seed(1))
    features = policy.model.vision_backbone(pixels)
    expected = [dino_features(weights, pixels[:, :3]), siglip_features(weights, pixels[:, 3:])]
    torch.testing.assert_close(features, torch.cat(expected, dim=-1), atol=1e-5, rtol=0)


@torch.no_grad()
def test_logits(policy, weights):
    """transformers is given the published order, and a mask that hides nothing."""
    pixels = torch.randn(2, 6, IMAGE_PX, IMAGE_PX, generator=torch.Generator().manual_seed(2))
    prompt = torch.randint(3, 700, (2, 9), generator=torch.Generator().manual_seed(3))
    llama = LlamaForCausalLM(LlamaConfig(**SIZES["text_config"], tie_word_embeddings=False)).eval()
    llama.load_state_dict(rename(weights, "language_model.", {}))
    x = policy.model.vision_backbone(pixels)
    for layer in ("fc1", "fc2", "fc3"):
        x = F.linear(x, weights[f"projector.{layer}.weight"], weights[f"projector.{layer}.bias"])
        x = x if layer == "fc3" else F.gelu(x)
    embed = llama.model.embed_tokens
    bos, stop = (embed(torch.full((2, 1), token)) for token in (1, 2))
    x = torch.cat([bos, x, embed(prompt), torch.zeros(2, 56, 96), stop], dim=1)
    everything = torch.zeros(2, 1, x.shape[1], x.shape[1])
    logits = llama(inputs_embeds=x, attention_mask=everything, use_cache=False).logits
    first = PATCHES + 9  # the last prompt token, where the first action is read
    expected = logits[:, first : first + 56, -320:-64]
    actual = policy.model(prompt, torch.ones(2, 9, dtype=torch.bool), pixels)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
