"""The reference's tiny model as a checkpoint folder, and a small policy that can act."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vla_rl.policy import load_pretrained, save_trained
from vla_rl.policy.openvla_oft.tiny import random_policy
from vla_rl.types import Observation

GOLDEN_SETS = sorted((Path(__file__).parents[2] / "golden").glob("openvla_oft_*"))
GOLDEN = GOLDEN_SETS[0].with_name("openvla_oft_tiny")
INSTRUCTIONS = (
    "pick up the alphabet soup and place it in the basket",
    "turn on the stove and put the moka pot on it",
    "put the bowl on the plate",
)


def golden_weight(key, shape, seed):
    """The formula of the golden outputs' README."""
    rng = np.random.RandomState((int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) + seed) % 2**32)
    weight = rng.standard_normal(shape).astype("float32")
    scales = ("norm.weight", "layernorm.weight", "scale_factor")
    is_scale = key.endswith(scales) or "norm1.weight" in key or "norm2.weight" in key
    return torch.from_numpy((1 + 0.1 * weight if is_scale else 0.08 * weight).astype("float32"))


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


def make_tiny_policy():
    """A small policy with statistics, and weights large enough that its answers depend on everything it reads."""
    policy = random_policy(seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in policy.parameters():
        if parameter.dim() > 1:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    command_TA = torch.rand(200, 7, generator=generator) * 2 - 1
    policy.fit_normalisation("libero_test", command_TA, torch.randn(200, 8, generator=generator))
    return policy


@pytest.fixture(scope="session")
def tiny_policy():
    return make_tiny_policy()


@pytest.fixture(scope="session")
def tiny_folder(tiny_policy, tmp_path_factory):
    """That policy as a checkpoint; tests only read it."""
    folder = tmp_path_factory.mktemp("tiny")
    save_trained(tiny_policy, folder)
    return str(folder)


def make_observation(rows):
    generator = torch.Generator().manual_seed(rows)
    return Observation(
        frame_NHWC=torch.randint(0, 256, (rows, 128, 128, 3), dtype=torch.uint8, generator=generator),
        proprio_NP=torch.randn(rows, 8, generator=generator),
        instruction_N=[INSTRUCTIONS[n % len(INSTRUCTIONS)] for n in range(rows)],
    )
