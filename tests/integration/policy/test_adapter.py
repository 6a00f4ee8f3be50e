"""Adapters of other programs: what is not plain LoRA, or not what `policy.lora` says, is refused by load and merge."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.policies import make_observation
from vla_rl.errors import UserError
from vla_rl.policy import load_policy, save_trained
from vla_rl.policy.openvla_oft.checkpoint import inspect_checkpoint
from vla_rl.policy.openvla_oft.merge import merge_adapter

LORA = {"r": 4, "alpha": 2, "targets": ["q_proj", "v_proj"]}
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def adapted(tiny_folder):
    policy = load_policy(tiny_folder, lora=LORA)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return policy


@pytest.fixture
def adapter(adapted, tmp_path):
    save_trained(adapted, tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(adapter, **entries):
    config = json.loads((adapter / CONFIG).read_text()) | entries
    (adapter / CONFIG).write_text(json.dumps({name: value for name, value in config.items() if value != "DELETE"}))


def all_refuse(tiny_folder, adapter, message):
    """Loading, merging and the doctor's inspection."""
    for read in (
        lambda: load_policy(tiny_folder, lora=LORA, adapter=str(adapter)),
        lambda: merge_adapter(Path(tiny_folder), adapter, adapter.parent / "merged"),
        lambda: inspect_checkpoint(tiny_folder, lora=LORA, adapter=str(adapter)),
    ):
        with pytest.raises(UserError, match=message) as refused:
            read()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"lora_alpha": 0}, "adapter_config.json: lora_alpha must be a finite number above 0, got 0"),
        ({"lora_alpha": None}, "lora_alpha must be a finite number above 0, got null"),
        ({"lora_alpha": "DELETE"}, "lora_alpha must be a finite number above 0, got null"),
        ({"r": "DELETE"}, "adapter_config.json: r must be an integer of at least 1, got null"),
        ({"r": 8}, "factors of .* have shapes .*, adapter_config.json says r=8"),
        ({"use_rslora": True}, r"not plain LoRA \(use_rslora is true\): merge the adapter into its base"),
        ({"use_dora": True}, r"not plain LoRA \(use_dora is true\)"),
        ({"use_something_new": True}, r"not plain LoRA \(use_something_new is true\)"),
        ({"alpha_pattern": {"q_proj": 8}}, "not plain LoRA .alpha_pattern"),
        ({"rank_pattern": {"q_proj": 8}}, "not plain LoRA .rank_pattern"),
        ({"init_lora_weights": "pissa"}, 'not plain LoRA .init_lora_weights is "pissa"'),
        ({"init_lora_weights": "pissa_niter_4"}, "not plain LoRA .init_lora_weights"),
        ({"modules_to_save": ["projector"]}, "not plain LoRA .modules_to_save"),
        ({"bias": "all"}, "not plain LoRA .bias"),
        ({"lora_bias": True}, "not plain LoRA .lora_bias"),
        ({"fan_in_fan_out": True}, "not plain LoRA .fan_in_fan_out"),
        ({"peft_type": "LOHA"}, 'not plain LoRA .peft_type is "LOHA"'),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_what_is_not_plain_lora(tiny_folder, adapter, entries, message):
    edit(adapter, **entries)
    all_refuse(tiny_folder, adapter, message)


def test_settings_that_change_no_number(tiny_folder, adapter, adapted):
    edit(adapter, base_model_name_or_path="somebody/base", lora_dropout=0.1, init_lora_weights="gaussian")
    again = load_policy(tiny_folder, lora=LORA, adapter=str(adapter))
    assert torch.equal(again.logits(make_observation(1)), adapted.logits(make_observation(1)))


def test_another_alpha_or_rank_than_the_file_says(tiny_folder, adapter):
    for lora, said in ((LORA | {"alpha": 4}, "r=4, alpha=4"), (LORA | {"r": 8}, "r=8, alpha=2")):
        for read in (load_policy, inspect_checkpoint):
            with pytest.raises(
                UserError,
                match=f"made with r=4, alpha=2, policy.lora has {said}: policy.lora.r=4 policy.lora.alpha=2$",
            ):
                read(tiny_folder, lora=lora, adapter=str(adapter))


def test_other_targets_are_named(tiny_folder, adapter):
    with pytest.raises(UserError, match=r"the adapter lacks .*: policy.lora.targets=\[q_proj,v_proj\]$"):
        load_policy(tiny_folder, lora={"r": 4, "alpha": 2}, adapter=str(adapter))
    with pytest.raises(UserError, match=r"the adapter has .*v_proj.*: policy.lora.targets=\[q_proj,v_proj\]$"):
        load_policy(tiny_folder, lora=LORA | {"targets": ["q_proj"]}, adapter=str(adapter))


def test_an_adapter_of_another_base(tiny_folder, adapter):
    tensors = load_file(adapter / TENSORS)
    name = next(name for name in tensors if "lora_A" in name)
    save_file(tensors | {name: torch.zeros(4, 99)}, adapter / TENSORS)
    with pytest.raises(UserError, match=r"does not fit the checkpoint: .*lora_A.weight has shape \[4, 99\], expected"):
        load_policy(tiny_folder, lora=LORA, adapter=str(adapter))


def test_factors_of_whole_numbers(tiny_folder, adapter):
    tensors = load_file(adapter / TENSORS)
    save_file({name: value.long() for name, value in tensors.items()}, adapter / TENSORS)
    all_refuse(tiny_folder, adapter, f"{TENSORS}: tensor .* is int64 .*save the weights in bfloat16 or float32")


def test_adapters_on_layers_that_are_never_run_are_left_out(tiny_folder, adapter, adapted):
    """PEFT's "all-linear" adapts the towers' last blocks and the attention pool, too."""
    tower = "base_model.model.vision_backbone"
    layers = {f"{tower}.featurizer.blocks.2.attn.qkv": (96, 288), f"{tower}.fused_featurizer.attn_pool.q": (96, 96)}
    more = {}
    for layer, (inputs, outputs) in layers.items():
        more |= {f"{layer}.lora_A.weight": torch.ones(4, inputs), f"{layer}.lora_B.weight": torch.ones(outputs, 4)}
    save_file(load_file(adapter / TENSORS) | more, adapter / TENSORS)
    again = load_policy(tiny_folder, lora=LORA, adapter=str(adapter))
    assert torch.equal(again.logits(make_observation(1)), adapted.logits(make_observation(1)))
    inspect_checkpoint(tiny_folder, lora=LORA, adapter=str(adapter))
    run = {name.replace("blocks.2", "blocks.1"): value for name, value in more.items() if "blocks.2" in name}
    save_file(load_file(adapter / TENSORS) | run, adapter / TENSORS)
    with pytest.raises(UserError, match="the adapter has vision_backbone.featurizer.blocks.1.attn.qkv.lora_A.weight"):
        load_policy(tiny_folder, lora=LORA, adapter=str(adapter))


def test_damaged_adapters(tiny_folder, adapter):
    whole = (adapter / TENSORS).read_bytes()
    (adapter / TENSORS).write_bytes(whole[:9000])
    all_refuse(tiny_folder, adapter, f"{TENSORS} is damaged or cut short")
    (adapter / TENSORS).write_bytes(whole)
    tensors = load_file(adapter / TENSORS)
    name = next(name for name in tensors if "lora_B" in name)
    save_file(tensors | {name: tensors[name] * float("nan")}, adapter / TENSORS)
    all_refuse(tiny_folder, adapter, f"{TENSORS}: tensor '{name}' holds NaN")
    save_file({}, adapter / TENSORS)
    all_refuse(tiny_folder, adapter, "holds no tensors")
    shutil.rmtree(adapter)
    all_refuse(tiny_folder, adapter, "no adapter in .*: it has no adapter_config.json")


def test_saved_adapters_can_be_read_by_others(adapter):
    assert (adapter / TENSORS).stat().st_mode == (adapter / CONFIG).stat().st_mode
