import json
import shutil

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

from tests.helpers.policies import make_observation
from vla_rl.checkpoints.shipped import shipped_folder
from vla_rl.policy import load_policy, load_pretrained, save_trained


@pytest.fixture(scope="module")
def saved(tiny_policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_trained(tiny_policy, folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_saved_policy_acts_the_same(tiny_policy, saved):
    again = load_policy(str(saved))
    one, other = (p.act(make_observation(2), [1, 2], temperature=1.0) for p in (tiny_policy, again))
    assert torch.equal(one.drawn["token"], other.drawn["token"])
    assert torch.equal(one.command_NLA, other.command_NLA)
    assert all(p.requires_grad for p in again.parameters())


def test_the_published_layout_is_written_back_whole(golden_policy, golden_folder, tmp_path):
    save_trained(golden_policy, tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (golden_folder, tmp_path))
    assert len(before) > 100
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((golden_folder / "config.json").read_text())
    # statistics that came inside config.json are kept in their own file as well
    statistics = json.loads((tmp_path / "dataset_statistics.json").read_text())
    assert statistics.keys() == golden_policy.files.config["norm_stats"].keys()


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


@pytest.mark.parametrize("kept", [0, 7, 100, -1000], ids=["empty", "length_cut", "header_cut", "data_cut"])
def test_a_file_cut_short(copy, kept):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="model.safetensors is damaged or cut short"):
        load_pretrained(copy)


def test_a_damaged_shard_is_named(copy):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    save_torch_state_dict(weights, copy, max_shard_size="2MB")
    shard = sorted(copy.glob("model-*.safetensors"))[1]
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    with pytest.raises(ValueError, match=f"{shard.name} is damaged or cut short"):
        load_pretrained(copy)


def test_tensors_that_are_no_floats(copy):
    path = copy / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"projector.fc1.bias": weights["projector.fc1.bias"].to(torch.int8)}, path)
    with pytest.raises(ValueError, match="'projector.fc1.bias' is I8, not floating point"):
        load_pretrained(copy)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "dataset_statistics.json"])
def test_json_that_is_none(copy, name):
    (copy / name).write_text('{"half": ')
    with pytest.raises(ValueError, match=f"{name} is not valid JSON"):
        load_pretrained(copy)
    (copy / name).write_text("[1]")
    with pytest.raises(ValueError, match=f"{name} must hold an object, got list"):
        load_pretrained(copy)


def test_statistics_and_constants_that_are_missing(copy):
    statistics = json.loads((copy / "dataset_statistics.json").read_text())
    del statistics["libero_test"]["action"]["q99"]
    (copy / "dataset_statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(ValueError, match="'action' of 'libero_test' has no 'q99'"):
        load_pretrained(copy)
    (copy / "dataset_statistics.json").unlink()
    with pytest.raises(ValueError, match="0 datasets"):
        load_pretrained(copy)
    (copy / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json has no key 'text_config'"):
        load_pretrained(copy)


def test_normalisation_that_is_missing(copy):
    (copy / "preprocessor_config.json").write_text(json.dumps({"means": [[0.5] * 3] * 2}))
    with pytest.raises(ValueError, match="'stds' must hold 3 numbers for each of the two towers"):
        load_pretrained(copy)


def test_an_l1_checkpoint_is_not_taken_for_a_discrete_one(copy):
    (copy / "action_head--150000_checkpoint.pt").touch()
    with pytest.raises(ValueError, match=r"an L1 head \(action_head--150000.*: policy.action_head=l1"):
        load_pretrained(copy)


def test_files_of_other_programs_are_written_back(copy, tmp_path):
    (copy / "tokenizer_config.json").write_text("{ }")
    (copy / "tokenizer.model").write_bytes(b"\x00\xff")
    save_trained(load_pretrained(copy), tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer_config.json").read_bytes() == b"{ }"
    assert (tmp_path / "again" / "tokenizer.model").read_bytes() == b"\x00\xff"
    assert {f.name for f in copy.iterdir()} == {f.name for f in (tmp_path / "again").iterdir()}


def test_code_in_a_checkpoint_is_not_run(copy):
    """Published folders bring modeling code along; `auto_map` in their config names it."""
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "modeling_prismatic.py").write_text("raise SystemExit('executed')")
    assert load_pretrained(copy).files.config["auto_map"] == config["auto_map"]


def test_no_such_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (str(tmp_path / "nowhere"), "nobody/no-such-model"):
        with pytest.raises(ValueError, match="missing checkpoint.*policy.checkpoint=.*conf=pcm_object_tiny"):
            load_policy(name)
    with pytest.raises(ValueError, match="nothing named 'shipped:nowhere' is shipped"):
        shipped_folder("shipped:nowhere")


def test_options_that_cannot_be():
    with pytest.raises(ValueError, match="no dtype named 'float16'.*Choices: float32, bfloat16"):
        load_policy(None, dtype="float16")
    with pytest.raises(ValueError, match="policy.lora="):
        load_policy(None, adapter="somewhere")


def test_bfloat16(saved):
    policy = load_policy(str(saved), dtype="bfloat16")
    assert {p.dtype for p in policy.parameters() if p.dim() > 1} == {torch.bfloat16}
    chunk = policy.act(make_observation(1), [1], temperature=1.0)
    assert chunk.logprob_NLA.dtype == torch.float32
