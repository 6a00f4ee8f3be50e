import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.helpers.policies import make_observation
from vla_rl import export
from vla_rl.errors import UserError
from vla_rl.policy import load_policy, load_pretrained, save_trained
from vla_rl.policy.openvla_oft.merge import merge_adapter

ROOT = Path(__file__).parents[4]
LORA = {"r": 4, "alpha": 8, "targets": ["q_proj", "lm_head", "fc2", "qkv"]}
# Llama: 4 layers, and the head; 2 towers x 2 blocks x (fc2, qkv); the projector
CHANGED = 4 + 1 + 2 * 2 * 2 + 1


@pytest.fixture(scope="module")
def folder(tiny_policy, tmp_path_factory):
    """Several shards, and files this project does not read."""
    folder = tmp_path_factory.mktemp("base")
    save_trained(tiny_policy, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_torch_state_dict(weights, folder, max_shard_size="2MB", metadata={"format": "pt"})
    (folder / "tokenizer.model").write_bytes(b"\x00\x01")
    return folder


@pytest.fixture(scope="module")
def adapted(folder):
    """Adapters as if trained: freshly made, their second factor is zero."""
    policy = load_policy(str(folder), lora=LORA)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return policy


@pytest.fixture(scope="module")
def adapter(adapted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    save_trained(adapted, folder)
    return folder


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_merged_checkpoint_answers_like_the_adapters(folder, adapter, adapted, tmp_path):
    before = contents(folder)
    merge_adapter(folder, adapter, tmp_path / "merged")
    merged = load_pretrained(tmp_path / "merged")
    observation = make_observation(3)
    plain = load_pretrained(folder).logits(observation)
    # two float32 sums, W x + B A x and (W + B A) x, of logits around 3
    torch.testing.assert_close(merged.logits(observation), adapted.logits(observation), atol=1e-4, rtol=0)
    assert (merged.logits(observation) - plain).abs().max() > 0.1
    assert contents(folder) == before


def test_what_no_adapter_touches_keeps_its_bytes(folder, adapter, tmp_path):
    changed = merge_adapter(folder, adapter, tmp_path / "merged")
    assert len(changed) == CHANGED
    before, after = contents(folder), contents(tmp_path / "merged")
    assert before.keys() == after.keys()
    shards = sorted(name for name in before if name.endswith(".safetensors"))
    assert len(shards) > 2
    for name in before.keys() - set(shards):
        assert before[name] == after[name], name
    for shard in shards:
        with safe_open(folder / shard, "pt") as one, safe_open(tmp_path / "merged" / shard, "pt") as other:
            assert one.keys() == other.keys()
            assert one.metadata() == other.metadata()
            for name in one.keys():  # noqa: SIM118
                assert torch.equal(one.get_tensor(name), other.get_tensor(name)) == (name not in changed), name


def test_the_stored_dtype_stays(folder, adapter, tmp_path):
    for file in folder.glob("*.safetensors"):
        (tmp_path / "half").mkdir(exist_ok=True)
        save_file({k: v.bfloat16() for k, v in load_file(file).items()}, tmp_path / "half" / file.name)
    (tmp_path / "half" / "model.safetensors.index.json").write_text(
        (folder / "model.safetensors.index.json").read_text()
    )
    changed = merge_adapter(tmp_path / "half", adapter, tmp_path / "merged")
    weights = {k: v for file in (tmp_path / "merged").glob("*.safetensors") for k, v in load_file(file).items()}
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    base = {k: v for file in (tmp_path / "half").glob("*.safetensors") for k, v in load_file(file).items()}
    factors = load_file(adapter / "adapter_model.safetensors")
    name = next(n for n in changed if n.endswith("q_proj.weight"))
    layer = "base_model.model." + name.removesuffix(".weight")
    # alpha / r = 2
    expected = base[name].float() + 2 * factors[f"{layer}.lora_B.weight"] @ factors[f"{layer}.lora_A.weight"]
    assert torch.equal(weights[name], expected.bfloat16())


def test_what_cannot_be_merged(folder, adapter, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="exists; give a new folder"):
        merge_adapter(folder, adapter, tmp_path / "there")
    with pytest.raises(ValueError, match="no adapter in .* it has no adapter_config.json"):
        merge_adapter(folder, folder, tmp_path / "out")
    config = json.loads((adapter / "adapter_config.json").read_text())
    odd = tmp_path / "odd"
    odd.mkdir()
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(tensors, odd / "adapter_model.safetensors")
    (odd / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ValueError, match="not plain LoRA .use_dora is true"):
        merge_adapter(folder, odd, tmp_path / "out")
    (odd / "adapter_config.json").write_text(json.dumps(config))
    name, value = next((n, v) for n, v in tensors.items() if "lora_A" in n)
    save_file(tensors | {name: value[:, :-1].contiguous()}, odd / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="is for a weight of shape"):
        merge_adapter(folder, odd, tmp_path / "out")
    save_file({name: value}, odd / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="is not one of a pair"):
        merge_adapter(folder, odd, tmp_path / "out")
    pair = {"lora_A": value, "lora_B": value.T.contiguous()}
    nowhere = {f"base_model.model.nowhere.{factor}.weight": value for factor, value in pair.items()}
    save_file(nowhere, odd / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="changes 'nowhere.weight', which checkpoint"):
        merge_adapter(folder, odd, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_verb(folder, adapter, tmp_path, capsys):
    arguments = [f"checkpoint={folder}", f"adapter={adapter}", f"out={tmp_path / 'out'}"]
    export.main(arguments)
    assert capsys.readouterr().out == f"policy {tmp_path / 'out'}: {CHANGED} tensors merged\n"
    assert load_file(next((tmp_path / "out").glob("*.safetensors")))
    with pytest.raises(UserError) as refused:
        export.main(arguments)
    assert str(refused.value) == f"out={tmp_path / 'out'} exists; give a new folder: out={tmp_path / 'out'}-2"
