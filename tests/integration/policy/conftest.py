"""The reference's tiny model as a checkpoint folder, and a small policy that can act."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.policies import GOLDEN_SETS, golden_weight, make_tiny_policy
from vla_rl.policy import load_pretrained, save_trained


@pytest.fixture(scope="session", params=GOLDEN_SETS, ids=lambda folder: folder.name)
def golden_set(request):
    """Every folder of golden outputs: another one needs no other code."""
    return request.param


@pytest.fixture(scope="session")
def golden_folder(golden_set, tmp_path_factory, tiny_policy):
    """The golden model in the published layout. Its tokenizer is of no matter: the golden inputs are token ids."""
    folder = tmp_path_factory.mktemp("golden")
    (folder / "config.json").write_text((golden_set / "config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(tiny_policy.files.preprocessor))
    (folder / "tokenizer.json").write_text(tiny_policy.files.tokenizer)
    layout = json.loads((golden_set / "state_dict_shapes.json").read_text())
    weights = {key: golden_weight(key, shape, layout["seed"]) for key, shape in layout["shapes"].items()}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def golden_policy(golden_folder):
    return load_pretrained(golden_folder)


@pytest.fixture(scope="session")
def golden_arrays(golden_set):
    with np.load(golden_set / "expected.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


@pytest.fixture(scope="session")
def tiny_policy():
    return make_tiny_policy()


@pytest.fixture(scope="session")
def tiny_folder(tiny_policy, tmp_path_factory):
    """That policy as a checkpoint; tests only read it."""
    folder = tmp_path_factory.mktemp("tiny")
    save_trained(tiny_policy, folder)
    return str(folder)
