"""Folders of openpi's torch port, read, and written back as lerobot's."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from tests.helpers.flow import GOLDEN, byte_tokenizer, golden_config, golden_model, golden_weights
from vla_rl.errors import UserError
from vla_rl.policy import save_trained
from vla_rl.policy.flow.load import load_flow_policy
from vla_rl.types import Observation

STATS = "assets/physical-intelligence/libero/norm_stats.json"


def entry(dims, padding=0):
    spread = [(n + 1) / dims for n in range(dims)]
    zeros = [0.0] * padding
    return {
        "mean": [x / 10 for x in spread] + zeros,
        "std": spread + zeros,
        "q01": [-x for x in spread] + zeros,
        "q99": spread + zeros,
    }


def write_openpi(folder, name, *, padding=0):
    """As openpi's converter writes a golden set: other entries, no `model.`, the words under the head's name alone."""
    raw = golden_config(GOLDEN / name)
    config = {"action_dim": 12, "action_horizon": raw["chunk_size"], "paligemma_variant": "gemma_2b"}
    config |= {"action_expert_variant": "gemma_300m", "precision": "bfloat16", "sizes": raw["sizes"]}
    weights = {key.removeprefix("model."): value for key, value in golden_weights(GOLDEN / name).items()}
    words = next(key for key in weights if key.endswith("embed_tokens.weight"))
    weights["paligemma_with_expert.paligemma.lm_head.weight"] = weights.pop(words)
    (folder / STATS).parent.mkdir(parents=True)
    stats = {"norm_stats": {"state": entry(8, padding), "actions": entry(7, padding)}}
    (folder / STATS).write_text(json.dumps(stats))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(byte_tokenizer())
    save_file(weights, folder / "model.safetensors")
    return folder


def observe():
    frame = torch.arange(2 * 40 * 40 * 6, dtype=torch.int32).remainder(251).to(torch.uint8).view(2, 40, 40, 6)
    return Observation(frame, torch.linspace(-0.9, 0.9, 16).view(2, 8), ["open it", "close the drawer"])


@pytest.mark.parametrize(("name", "kind", "numbers"), [("pi0_tiny", "pi0", None), ("pi05_tiny", "pi05", 0)])
@pytest.mark.parametrize("padding", [0, 24])
def test_a_folder_of_openpi(tmp_path, name, kind, numbers, padding):
    folder = write_openpi(tmp_path / "a", name, padding=padding)
    policy = load_flow_policy(str(folder), state_numbers=numbers)
    processors = policy.processors
    assert (policy.model.config.type, policy.images, processors.missing) == (kind, 2, 1)
    assert (policy.proprio_dims, processors.action_dims, policy.chunk_steps) == (8, 7, 10)
    for key, value in golden_model(GOLDEN / name).state_dict().items():
        assert torch.equal(policy.model.state_dict()[key], value)
    assert processors.prompts(["open it"], torch.zeros(1, 8)) == ["open it\n"]
    # openpi's own formulas, columns n = 1..7: low -n/7, high n/7; mean n/70, deviation n/7
    value, n = torch.tensor([[[0.3, -0.2, 0.1, 0.0, 0.5, -0.9, 1.0]]]), torch.arange(1, 8)
    scaled = 2 * (value + n / 7) / (2 * n / 7 + 1e-6) - 1 if kind == "pi05" else (value - n / 70) / (n / 7 + 1e-6)
    assert_close(processors.targets(value, 12)[..., :7], scaled, atol=1e-6, rtol=0)
    assert_close(processors.commands(scaled), value, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("numbers", "prompt"), [(0, "a\n"), (8, "Task: a, State: " + "128 " * 7 + "128;\nAction: ")], ids=["none", "state"]
)
def test_it_is_written_back_as_lerobots(tmp_path, numbers, prompt):
    policy = load_flow_policy(str(write_openpi(tmp_path / "a", "pi05_tiny")), state_numbers=numbers)
    save_trained(policy, tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (config["type"], config["chunk_size"], config["max_state_dim"]) == ("pi05", 10, 12)
    again = load_flow_policy(str(tmp_path / "b"))
    assert again.processors.prompts(["a"], torch.zeros(1, 8)) == [prompt]
    first, second = (p.act(observe(), [1, 2], temperature=1.0) for p in (policy, again))
    assert torch.equal(first.command_NLA, second.command_NLA)
    assert torch.equal(first.logprob_NLA, second.logprob_NLA)


def without_tower(folder):
    weights = {key.removeprefix("model."): value for key, value in golden_weights(GOLDEN / "pi05_tiny").items()}
    save_file(
        {key: value for key, value in weights.items() if "post_layernorm" not in key}, folder / "model.safetensors"
    )


def another(folder):
    (folder / "assets" / "droid").mkdir()
    (folder / "assets" / "droid" / "norm_stats.json").write_text((folder / STATS).read_text())


def edit_sizes(folder, value):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sizes": value}))


def edit_stats(folder, change):
    content = json.loads((folder / STATS).read_text())
    change(content["norm_stats"])
    (folder / STATS).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / STATS).unlink(), "must have one norm_stats.json, .* and has none"),
        (another, "has assets/droid/norm_stats.json, assets/physical-intelligence/libero/norm_stats.json"),
        (lambda f: edit_stats(f, lambda s: s.pop("actions")), "norm_stats.actions must be an object"),
        (lambda f: edit_stats(f, lambda s: s["state"].pop("q99")), "state.q99 must be a list of 8 finite numbers"),
        (lambda f: (f / "config.json").write_text('{"action_horizon": 10}'), "action_dim must be an integer"),
        *(
            (lambda f, value=value: edit_sizes(f, value), "^config.json: sizes must be an obj")
            for value in (None, [], "x")
        ),
        (lambda f: edit_sizes(f, {"vision": 5}), "^config.json: sizes.vision must be an object, got 5"),
        (lambda f: edit_stats(f, lambda s: s["state"].update(q01=[9.0] * 8)), "observation.state.q99 is below observ"),
        (without_tower, "post_layernorm.weight' is missing .2 in all"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, harm, message):
    folder = write_openpi(tmp_path / "a", "pi05_tiny")
    load_flow_policy(str(folder), state_numbers=0)
    harm(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_flow_policy(str(folder), state_numbers=0)
    assert "\n" not in str(caught.value)


def test_the_prompts_state_has_to_be_said(tmp_path):
    folder = write_openpi(tmp_path / "a", "pi05_tiny")
    with pytest.raises(UserError, match=r"policy.state_numbers=0 \(none, .*\), or policy.state_numbers=8$"):
        load_flow_policy(str(folder))
