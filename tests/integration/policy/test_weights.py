"""Weight files: values, wrappers' names, two sets in one folder, permissions."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

from vla_rl.errors import UserError
from vla_rl.policy import load_pretrained, save_trained
from vla_rl.policy.openvla_oft.checkpoint import inspect_checkpoint
from vla_rl.policy.weights import check_finite, fill_trained, save_tensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHT = "projector.fc1.weight"


@pytest.fixture
def copy(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "copy")
    return tmp_path / "copy"


def both_refuse(folder, message):
    for load in (load_pretrained, lambda folder: inspect_checkpoint(str(folder))):
        with pytest.raises(UserError, match=message):
            load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused_with_tensor_and_file(copy, value):
    weights = load_file(copy / SINGLE)
    weights[WEIGHT][3, 5] = value
    save_file(weights, copy / SINGLE)
    both_refuse(copy, f"{SINGLE}: tensor '{WEIGHT}' holds NaN or infinite values")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_largest_finite_number_is_one(dtype, tmp_path):
    largest = torch.finfo(dtype).max
    check_finite("x", torch.tensor([-largest, largest], dtype=dtype), tmp_path)
    check_finite("x", torch.zeros(0, dtype=dtype), tmp_path)
    with pytest.raises(UserError, match="tensor 'x'"):
        check_finite("x", torch.tensor([0.0, float("nan"), 1.0], dtype=dtype), tmp_path)


@pytest.mark.parametrize(
    ("rename", "remedy"),
    [
        (lambda name: f"module.{name}", "saved from a DistributedDataParallel: save its `module`"),
        (lambda name: f"_orig_mod.{name}", "saved from a torch.compile: save its `_orig_mod`"),
        (lambda name: name.replace("q_proj.", "q_proj.base_layer."), r"save it after `merge_and_unload\(\)`"),
    ],
    ids=["module", "compile", "adapters"],
)
def test_names_that_a_wrapper_changed(copy, rename, remedy):
    save_file({rename(name): value for name, value in load_file(copy / SINGLE).items()}, copy / SINGLE)
    both_refuse(copy, f"is not part of the model; the model was .*{remedy}")


def test_half_precision_is_read_and_eight_bits_are_not(copy):
    weights = load_file(copy / SINGLE)
    save_file({name: value.half() for name, value in weights.items()}, copy / SINGLE)
    policy = load_pretrained(copy)
    assert torch.equal(policy.state_dict()[f"model.{WEIGHT}"], weights[WEIGHT].half().float())
    save_file({name: value.to(torch.float8_e4m3fn) for name, value in weights.items()}, copy / SINGLE)
    both_refuse(copy, "is F8_E4M3, not floating point of 16 bits or more: save the weights in bfloat16 or float32")


def test_two_sets_of_weights(copy):
    weights = load_file(copy / SINGLE)
    save_torch_state_dict(weights, copy, max_shard_size="2MB")  # it takes the single file away
    save_file(weights, copy / SINGLE)
    both_refuse(copy, rf"two sets of weights, those that {INDEX} names \(model-00001-of-.*\) and {SINGLE}: move one")
    (copy / SINGLE).unlink()
    load_pretrained(copy)
    (copy / INDEX).unlink()
    save_file(weights, copy / SINGLE)
    both_refuse(copy, rf"two sets of weights, {SINGLE} and model-00001-of-.*: move one of them away$")


def test_a_tensor_in_two_shards(copy):
    weights = load_file(copy / SINGLE)
    (copy / SINGLE).unlink()
    for n in (1, 2):
        save_file(weights, copy / f"model-0000{n}-of-00002.safetensors")
    files = dict.fromkeys(weights, "model-00001-of-00002.safetensors") | {WEIGHT: "model-00002-of-00002.safetensors"}
    (copy / INDEX).write_text(json.dumps({"weight_map": files}))
    both_refuse(copy, "is in two files, one of them model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight_map": {"a": None}}, "has no weight_map"),
        ({"weight_map": ["a"]}, "has no weight_map"),
        ({"weight_map": {}}, "has no weight_map"),
        ({}, "has no weight_map"),
        ({"weight_map": {"a": ""}}, f'{INDEX} names "", and its folder has no such file: download or copy it again$'),
        ({"weight_map": {"a": "."}}, f'{INDEX} names ".", and its folder'),
        ({"weight_map": {"a": "../copy/model.safetensors"}}, f'{INDEX} names "[.][.]/copy/model'),
        ({"weight_map": {"a": "a" * 5000}}, f'{INDEX} names "a{{59}}[.][.][.], and its folder'),
        ({"weight_map": {"a": SINGLE, "b": "other.safetensors"}}, f'{INDEX} names "other.safetensors", and its'),
    ],
)
def test_an_index_that_names_no_file(copy, content, message):
    (copy / INDEX).write_text(json.dumps(content))
    both_refuse(copy, message)


@pytest.mark.parametrize("name", [WEIGHT, "odd"])
def test_an_index_that_names_the_wrong_file(copy, name):
    save_torch_state_dict(load_file(copy / SINGLE), copy, max_shard_size="2MB")
    content = json.loads((copy / INDEX).read_text())
    wrong = next(file for file in content["weight_map"].values() if file != content["weight_map"].get(name))
    content["weight_map"][name] = wrong
    (copy / INDEX).write_text(json.dumps(content))
    both_refuse(copy, f"{INDEX} says that {wrong} holds the tensor '{name}', which it does not: download or copy both")


@pytest.mark.parametrize("damage", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_a_weight_file_that_cannot_be_opened(copy, damage):
    (copy / SINGLE).unlink()
    damage(copy / SINGLE)
    both_refuse(copy, f"{SINGLE} is damaged or cut short")


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(2, dtype=torch.int64), "int64"),
        (torch.ones(2, dtype=torch.bool), "bool"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.ones(2).to_sparse(), r"float32 \(sparse_coo, cpu\)"),
        (torch.ones(2, device="meta"), r"float32 \(strided, meta\)"),
    ],
)
def test_values_that_are_no_floating_point(tensor, kind, tmp_path):
    with pytest.raises(UserError, match=f"w.pt: tensor 'x' is {kind}.*: save the weights in bfloat16 or float32"):
        check_finite("x", tensor, tmp_path / "w.pt")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_those_of_any_other_new_file(tiny_policy, tmp_path, umask):
    before = os.umask(umask)
    try:
        save_trained(tiny_policy, tmp_path / "checkpoint")
        save_trained(torch.nn.Linear(2, 2), tmp_path / "own")
        save_tensors({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    files = [*(tmp_path / "checkpoint").iterdir(), *(tmp_path / "own").iterdir(), tmp_path / "x.safetensors"]
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in files} == {
        file.name: oct(0o666 & ~umask) for file in files
    }
    assert {"model.safetensors", "config.json"} <= {file.name for file in files}


@pytest.fixture
def half_trained():
    """A layer whose bias is not trained."""
    layer = torch.nn.Linear(2, 3)
    layer.bias.requires_grad_(False)
    return layer


def test_what_is_not_trained_may_be_missing(half_trained):
    bias = half_trained.bias.clone()
    fill_trained(half_trained, {"weight": torch.ones(3, 2)}, Path("a.ckpt"))
    assert half_trained.weight.tolist() == [[1.0, 1.0]] * 3
    assert torch.equal(half_trained.bias, bias)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (None, "must hold tensors by name and nothing else"),
        ({"weight": None}, "must hold tensors by name and nothing else"),
        ({}, "tensor 'weight' is missing"),
        ({"weight": torch.ones(3, 2), "odd": torch.ones(1)}, "tensor 'odd' is not expected"),
        ({"weight": torch.ones(2, 3)}, r"tensor 'weight' has shape \[2, 3\], expected \[3, 2\]"),
        ({"weight": torch.full((3, 2), torch.nan)}, "tensor 'weight' holds NaN"),
    ],
)
def test_what_does_not_fit_a_module_is_named(half_trained, stored, message):
    with pytest.raises(UserError, match=f"^a.ckpt:? {message}"):
        fill_trained(half_trained, stored, Path("a.ckpt"))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_has_no_shape_to_compare(half_trained):
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(UserError, match=r"^a.ckpt: tensor 'weight' is float32 \(nested, cpu\): save"):
        fill_trained(half_trained, {"weight": nested}, Path("a.ckpt"))
