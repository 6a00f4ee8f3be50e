import json
import shutil

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

from tests.unit.policy.conftest import make_observation
from vla_rl.policy import load_policy, save_policy
from vla_rl.shipped import shipped_folder


@pytest.fixture(scope="module")
def saved(tiny_policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_policy(tiny_policy, folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_saved_policy_acts_the_same(tiny_policy, saved):
    again = load_policy(str(saved))
    one, other = (p.act(make_observation(2), [1, 2], temperature=1.0) for p in (tiny_policy, again))
    assert torch.equal(one.token_NLA, other.token_NLA)
    assert torch.equal(one.command_NLA, other.command_NLA)
    assert all(p.requires_grad for p in again.parameters())


def test_the_published_layout_is_written_back_whole(golden_policy, golden_folder, tmp_path):
    save_policy(golden_policy, tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (golden_folder, tmp_path))
    assert len(before) == 151
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((golden_folder / "config.json").read_text())
    # statistics that came inside config.json are kept in their own file as well
    assert "libero_object_no_noops" in json.loads((tmp_path / "dataset_statistics.json").read_text())


def test_shards(copy, tiny_policy):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    save_torch_state_dict(weights, copy, max_shard_size="2MB")
    assert len(list(copy.glob("model-*.safetensors"))) > 2
    policy = load_policy(str(copy))
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), tiny_policy.parameters(), strict=True))


@pytest.mark.parametrize("name", ["projector.fc1.weight", "vision_backbone.featurizer.norm.bias"])
def test_tensors_that_do_not_fit_are_named(copy, name):
    """The second is never run; it is missed all the same."""
    path = copy / "model.safetensors"
    weights = load_file(path)
    tensor = weights.pop(name)
    save_file(weights, path)
    with pytest.raises(ValueError, match=f"tensor '{name}' is missing"):
        load_policy(str(copy))
    save_file(weights | {name: tensor[:-1].clone()}, path)
    with pytest.raises(ValueError, match=rf"tensor '{name}' has shape \[.*config.json asks for \["):
        load_policy(str(copy))
    save_file(weights | {name: tensor, "projector.fc9.weight": tensor.clone()}, path)
    with pytest.raises(ValueError, match="tensor 'projector.fc9.weight' in model.safetensors is not part of"):
        load_policy(str(copy))


def test_files_that_are_missing(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no model.safetensors"):
        load_policy(str(copy))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="has no tokenizer.json"):
        load_policy(str(copy))


def test_no_such_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (str(tmp_path / "nowhere"), "nobody/no-such-model"):
        with pytest.raises(ValueError, match="missing checkpoint.*policy.checkpoint=.*conf=pcm_object_tiny"):
            load_policy(name)
    with pytest.raises(ValueError, match="nothing named 'shipped:nowhere' is shipped"):
        shipped_folder("shipped:nowhere")


def test_options_that_cannot_be():
    with pytest.raises(ValueError, match="dtype 'float16' is not one of float32, bfloat16"):
        load_policy(None, dtype="float16")
    with pytest.raises(ValueError, match="policy.lora="):
        load_policy(None, adapter="somewhere")


def test_bfloat16(saved):
    policy = load_policy(str(saved), dtype="bfloat16")
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    chunk = policy.act(make_observation(1), [1], temperature=1.0)
    assert chunk.logprob_NLA.dtype == torch.float32
