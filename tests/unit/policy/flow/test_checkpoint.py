"""Folders as lerobot writes them: read, written back, and refused with one line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.flow import GOLDEN, SETS, golden_arrays, golden_model, golden_weights, write_folder
from vla_rl.errors import UserError
from vla_rl.policy import save_trained
from vla_rl.policy.flow.load import load_flow_policy
from vla_rl.types import Observation

PI05 = "pi05_tiny"


def observe(rows=2):
    generator = torch.Generator().manual_seed(rows)
    frame = torch.randint(0, 256, (rows, 40, 40, 3), dtype=torch.uint8, generator=generator)
    return Observation(frame, torch.rand(rows, 8, generator=generator), ["open it", "close the drawer"][:rows])


def velocity(model):
    arrays = golden_arrays(GOLDEN / PI05)
    inputs = (list(arrays["images"].unbind(1)), *(arrays[n] for n in ("image_mask", "token_ids", "token_mask")), None)
    with torch.no_grad():
        return model.velocity(model.prefix(*inputs), arrays["velocity_x"][0], arrays["velocity_time"][0], None)[0]


@pytest.mark.parametrize("name", SETS)
def test_a_folder_is_read_and_written_back(tmp_path, name):
    folder = write_folder(tmp_path / "a", name)
    policy = load_flow_policy(str(folder))
    assert (policy.images, policy.processors.missing, policy.proprio_dims) == (1, 1, 8)
    for key, value in golden_model(GOLDEN / name).state_dict().items():
        assert torch.equal(policy.model.state_dict()[key], value)
    save_trained(policy, tmp_path / "b")
    for file in folder.iterdir():
        one, other = file, tmp_path / "b" / file.name
        if file.suffix == ".safetensors":
            one, other = load_file(one), load_file(other)
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)
        else:
            assert json.loads(one.read_text()) == json.loads(other.read_text())
    again = load_flow_policy(str(tmp_path / "b"))
    first, second = (p.act(observe(), [1, 2], temperature=1.0) for p in (policy, again))
    assert torch.equal(first.command_NLA, second.command_NLA)


def respelled(change):
    return {change(name): value for name, value in golden_weights(GOLDEN / PI05).items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.removeprefix("model."),
        lambda name: name.replace("vision_tower.vision_model.", "vision_tower."),
        lambda name: name.replace("model.time_mlp_", "model.action_time_mlp_"),
    ],
    ids=["without model.", "without vision_model.", "pi0's name of the time"],
)
def test_other_spellings(tmp_path, change):
    weights = respelled(change)
    policy = load_flow_policy(str(write_folder(tmp_path / "a", PI05, weights)))
    assert torch.equal(velocity(policy.model), velocity(golden_model(GOLDEN / PI05)))
    save_trained(policy, tmp_path / "b")
    written = load_file(tmp_path / "b" / "model.safetensors")
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[name], value) for name, value in weights.items())


def test_words_under_the_output_heads_name(tmp_path):
    """As published base models have them."""
    weights = golden_weights(GOLDEN / PI05)
    (embedding,) = (name for name in weights if name.endswith("embed_tokens.weight"))
    weights["model.paligemma_with_expert.paligemma.lm_head.weight"] = weights.pop(embedding)
    policy = load_flow_policy(str(write_folder(tmp_path / "a", PI05, weights)))
    assert torch.equal(velocity(policy.model), velocity(golden_model(GOLDEN / PI05)))
    save_trained(policy, tmp_path / "b")
    assert load_file(tmp_path / "b" / "model.safetensors").keys() == weights.keys()


def test_a_projection_of_the_state_beside_pi05_is_kept_and_not_run(tmp_path):
    weights = golden_weights(GOLDEN / PI05) | {"model.state_proj.bias": torch.ones(32)}
    policy = load_flow_policy(str(write_folder(tmp_path / "a", PI05, weights)))
    save_trained(policy, tmp_path / "b")
    assert "model.state_proj.bias" in load_file(tmp_path / "b" / "model.safetensors")


def edit_json(file, *path, value):
    content = node = json.loads(file.read_text())
    for key in path[:-1]:
        node = node[key]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    file.write_text(json.dumps(content))


def without_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.action_in_proj.bias"]
    save_file(weights, folder / "model.safetensors")


def with_weight(folder):
    save_file(load_file(folder / "model.safetensors") | {"model.other": torch.ones(2)}, folder / "model.safetensors")


def without_quantiles(folder):
    for file in folder.glob("policy_*.safetensors"):
        save_file({n: v for n, v in load_file(file).items() if "q99" not in n}, file)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "policy_postprocessor.json").unlink(), "has no policy_postprocessor.json"),
        (lambda f: (f / "policy_preprocessor_step_0.safetensors").unlink(), "has no policy_preprocessor_step_0"),
        (lambda f: (f / "tokenizer.json").unlink(), "copy nobody/nothing's tokenizer.json into the folder"),
        (lambda f: edit_json(f / "config.json", "type", value="act"), "type='act' is no flow policy .*pi0, pi05"),
        (lambda f: edit_json(f / "config.json", "chunk_size", value=0), "chunk_size must be an integer of at least 1"),
        (lambda f: edit_json(f / "config.json", "use_relative_actions", value=True), "relative actions .*supported"),
        (lambda f: edit_json(f / "config.json", "image_resolution", value=[56, 64]), r"must be \[56, 56\], got"),
        (lambda f: edit_json(f / "config.json", "paligemma_variant", value="gemma_7b"), "'gemma_7b' stands for no"),
        (
            lambda f: edit_json(f / "policy_preprocessor.json", "steps", 0, "config", "norm_map", "STATE", value="ODD"),
            "norm_map.STATE is 'ODD'; known: IDENTITY",
        ),
        (
            lambda f: edit_json(f / "policy_preprocessor.json", "steps", 1, "registry_name", value="odd"),
            "the step 'odd' is not understood",
        ),
        (without_quantiles, "statistics have no observation.state.q99, which QUANTILES needs"),
        (without_weight, "'model.action_in_proj.bias' is missing"),
        (with_weight, "'model.other' in model.safetensors is not part of the model"),
        (
            lambda f: edit_json(f / "config.json", "max_action_dim", value=32),
            r"has shape .*, config.json asks for",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(tmp_path, harm, message):
    folder = write_folder(tmp_path / "a", PI05)
    load_flow_policy(str(folder))
    harm(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_flow_policy(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "head"}, "no train named 'head'. Choices: expert, all"),
        ({"dtype": "float16"}, "no dtype named 'float16'"),
        ({"noise_level": 0}, "policy.noise_level must be"),
        ({"denoising_steps": 0}, "policy.denoising_steps must be"),
        ({"chunk_steps": 11}, "predicts 10 control steps, policy.chunk_steps=11 asks for more"),
        ({"adapter": "here"}, "needs the LoRA settings"),
        ({"dtype": "bfloat16", "train": "all"}, "would round most steps away"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        load_flow_policy(str(write_folder(tmp_path / "a", PI05)), **options)
