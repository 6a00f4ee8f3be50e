"""Folders as lerobot writes them: read, written back, and refused with one line."""

import json

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from tests.helpers.flow import GOLDEN, SETS, golden_arrays, golden_model, golden_weights, observe, write_folder
from tests.helpers.json_files import DELETE, edit_json
from vla_rl.errors import UserError
from vla_rl.policy import save_trained
from vla_rl.policy.flow.load import inspect_flow_checkpoint, load_flow_policy
from vla_rl.policy.flow.model import Inputs

PI05 = "pi05_tiny"


def velocity(model):
    arrays = golden_arrays(GOLDEN / PI05)
    inputs = (list(arrays["images"].unbind(1)), *(arrays[n] for n in ("image_mask", "token_ids", "token_mask")), None)
    with torch.no_grad():
        return model.velocity(model.prefix(Inputs(*inputs)), arrays["velocity_x"][0], arrays["velocity_time"][0], None)[
            0
        ]


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


def unreachable(*_args):
    raise LocalEntryNotFoundError("no network")


def without_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.action_in_proj.bias"]
    save_file(weights, folder / "model.safetensors")


def with_weight(folder):
    save_file(load_file(folder / "model.safetensors") | {"model.other": torch.ones(2)}, folder / "model.safetensors")


def edit_statistics(folder, change, pattern="policy_*.safetensors"):
    for file in folder.glob(pattern):
        save_file(change(load_file(file)), file)


def without_quantiles(folder):
    edit_statistics(folder, lambda found: {n: v for n, v in found.items() if "q99" not in n})


def edit_step(folder, place, option, value):
    edit_json(folder / "policy_preprocessor.json", "steps", place, "config", option, value=value)


def rename(folder, names):
    content = json.loads((folder / "policy_preprocessor.json").read_text())
    content["steps"].append({"registry_name": "rename_observations_processor", "config": {"rename_map": names}})
    (folder / "policy_preprocessor.json").write_text(json.dumps(content))


def test_an_index_that_names_the_wrong_file(tmp_path):
    folder = write_folder(tmp_path / "a", PI05)
    huggingface_hub.save_torch_state_dict(load_file(folder / "model.safetensors"), folder, max_shard_size="100KB")
    index = folder / "model.safetensors.index.json"
    load_flow_policy(str(folder))
    one, *_, other = json.loads(index.read_text())["weight_map"].items()
    edit_json(index, "weight_map", one[0], value=other[1])
    line = f"index.json says that {other[1]} holds the tensor '{one[0]}', which it does not: download or copy both"
    for load in (load_flow_policy, lambda checkpoint: inspect_flow_checkpoint({"checkpoint": checkpoint})):
        with pytest.raises(UserError, match=line):
            load(str(folder))


def test_a_deviation_below_zero(tmp_path):
    folder = write_folder(tmp_path / "a", "pi0_tiny")
    edit_statistics(folder, lambda found: found | {"action.std": -found["action.std"]})
    with pytest.raises(UserError, match="^policy_preprocessor_step_0.safetensors: action.std is below 0: copy"):
        load_flow_policy(str(folder))


@pytest.mark.parametrize("value", ["text", [], {}, 1.5])
def test_empty_cameras_that_are_no_number(tmp_path, value):
    folder = write_folder(tmp_path / "a", "smolvla_tiny")
    edit_json(folder / "config.json", "empty_cameras", value=value)
    with pytest.raises(UserError, match="^config.json: empty_cameras must be an integer, got"):
        load_flow_policy(str(folder))


def test_other_cameras(tmp_path):
    folder = write_folder(tmp_path / "a", PI05)
    for camera in ("left", "right"):
        feature = {"type": "VISUAL", "shape": [3, 56, 56]}
        edit_json(folder / "config.json", "input_features", f"observation.images.{camera}", value=feature)
    with pytest.raises(UserError, match=r"3 cameras \(image, left, right\), .* policy.cameras=\[image,left\]$"):
        load_flow_policy(str(folder))
    assert load_flow_policy(str(folder), cameras=["image", "left", "right"]).images == 3
    policy = load_flow_policy(str(folder), cameras=["right", "image"])
    assert policy.processors.cameras == ("right", "image")
    assert policy.processors.missing == 2  # left, empty_camera_0
    with pytest.raises(
        UserError, match=r"the checkpoint's cameras are image, left, right, each .*=\[image,left,right\]"
    ):
        load_flow_policy(str(folder), cameras=["agentview"])
    with pytest.raises(UserError, match="each of them once"):
        load_flow_policy(str(folder), cameras=["left", "left"])
    renamed = {
        "observation.images.image": "observation.images.right",
        "observation.images.image2": "observation.images.left",
    }
    step = {"registry_name": "rename_observations_processor", "config": {"rename_map": renamed}}
    steps = json.loads((folder / "policy_preprocessor.json").read_text())["steps"]
    edit_json(folder / "policy_preprocessor.json", "steps", value=[step, *steps])
    assert load_flow_policy(str(folder)).processors.cameras == ("right", "left")


def test_smolvla_leaves_missing_cameras_out(tmp_path):
    """All but `empty_cameras` of them."""
    folder = write_folder(tmp_path / "a", "smolvla_tiny")
    assert load_flow_policy(str(folder)).processors.missing == 1
    edit_json(folder / "config.json", "empty_cameras", value=0)
    assert load_flow_policy(str(folder)).processors.missing == 0


def test_a_checkpoint_without_statistics_takes_those_of_demonstrations(tmp_path):
    folder = write_folder(tmp_path / "a", PI05)
    other = {"another_robot.action.mean": torch.ones(3)}  # as lerobot/smolvla_base
    edit_statistics(folder, lambda _: other)
    edit_json(folder / "policy_postprocessor.json", "steps", 0, "state_file", value=DELETE)
    policy = load_flow_policy(str(folder))
    with pytest.raises(UserError, match="no statistics of observation.state, which QUANTILES needs"):
        policy.act(observe(), [1, 2], temperature=1.0)
    generator = torch.Generator().manual_seed(0)
    policy.fit_normalisation("mine", torch.rand(50, 7, generator=generator), torch.rand(50, 8, generator=generator))
    save_trained(policy, tmp_path / "b")
    for pipeline in ("policy_preprocessor", "policy_postprocessor"):  # lerobot reads each from its own file
        step = json.loads((tmp_path / "b" / f"{pipeline}.json").read_text())["steps"][0]
        assert "action.q01" in load_file(tmp_path / "b" / step["state_file"])
    again = load_flow_policy(str(tmp_path / "b"))
    assert "another_robot.action.mean" in again.files.statistics
    first, second = (p.act(observe(), [1, 2], temperature=1.0) for p in (policy, again))
    assert torch.equal(first.command_NLA, second.command_NLA)
    before = again.processors.action
    again.fit_normalisation("other", torch.zeros(50, 7), torch.zeros(50, 8))
    assert again.processors.action is before  # the weights were trained with it


def test_the_expert_is_read_in_float32(tmp_path):
    """Whatever the frozen part is: what learns is not rounded."""
    policy = load_flow_policy(str(write_folder(tmp_path / "a", PI05)), dtype="bfloat16")
    golden = golden_model(GOLDEN / PI05).state_dict()
    trained = {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    for name, value in policy.model.state_dict().items():
        assert value.dtype == (torch.float32 if name in trained else torch.bfloat16)
        assert torch.equal(value, golden[name].to(value.dtype))


def test_a_run_in_place_of_a_checkpoint(tmp_path):
    write_folder(tmp_path / "run" / "policy", PI05)
    with pytest.raises(
        UserError, match=r"has no config.json: it is a run, and its policy is policy.checkpoint=.*policy$"
    ):
        load_flow_policy(str(tmp_path / "run"))


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
            "norm_map.STATE is .ODD.; known: IDENTITY",
        ),
        (
            lambda f: edit_json(f / "policy_preprocessor.json", "steps", 1, "registry_name", value="odd"),
            "the step 'odd' is not understood",
        ),
        (
            lambda f: edit_json(
                f / "policy_postprocessor.json", "steps", 0, "config", "norm_map", "ACTION", value="MIN_MAX"
            ),
            "policy_preprocessor.json has norm_map.ACTION=QUANTILES .* policy_postprocessor.json MIN_MAX and",
        ),
        (
            lambda f: edit_json(f / "policy_postprocessor.json", "steps", 0, "config", "eps", value=1e-6),
            r"norm_map.STATE=QUANTILES and eps=1e-08, .* and 1e-06: copy",
        ),
        (
            lambda f: edit_json(f / "policy_preprocessor.json", "steps", 1, "config", "padding_side", value="left"),
            "padding_side is 'left', only 'right'",
        ),
        (
            lambda f: edit_json(f / "policy_preprocessor.json", "steps", 2, value=DELETE),
            "^policy_preprocessor.json has no step that writes the prompt .smolvla_new_line_processor, .*_step.: copy",
        ),
        (lambda f: edit_json(f / "policy_preprocessor.json", "steps", value=7), "has no list of steps"),
        (lambda f: edit_json(f / "policy_preprocessor.json", "steps", value=[]), "has no step 'tokenizer_processor'"),
        (lambda f: edit_json(f / "config.json", "sizes", "vocab", value=200), "ids up to 255, the model embeds 200"),
        (
            lambda f: edit_statistics(
                f, lambda found: found | {"action.q01": torch.zeros(7)}, "policy_post*.safetensors"
            ),
            "have different statistics action.q01",
        ),
        (
            lambda f: edit_statistics(f, lambda found: found | {"action.q01": torch.full((7,), torch.nan)}),
            "'action.q01' holds NaN",
        ),
        (
            lambda f: edit_statistics(f, lambda found: {n: v[:5] for n, v in found.items()}),
            r"observation.state.q01 has shape \[5\], config.json declares 8",
        ),
        (without_quantiles, "^policy_preprocessor_step_0.safetensors has no observation.state.q99, which QUANTILES "),
        (
            lambda f: edit_statistics(f, lambda s: s | {"action.q99": s["action.q01"], "action.q01": s["action.q99"]}),
            "^policy_preprocessor_step_0.safetensors: action.q99 is below action.q01: copy the file that came",
        ),
        (
            lambda f: edit_statistics(f, lambda found: found | {"action.q99": torch.ones(7, dtype=torch.int64)}),
            "^policy_preprocessor_step_0.safetensors: tensor 'action.q99' is int64 ",
        ),
        *(
            (lambda f, value=value: edit_step(f, 1, "padding", value), "^policy_preprocessor.json: padding must be max")
            for value in (DELETE, None, "text", True, [])
        ),
        *(
            (lambda f, value=value: edit_step(f, 0, "norm_map", {"STATE": value}), "norm_map.STATE is .*; known: IDENT")
            for value in ([], {}, 5, "text")
        ),
        (
            lambda f: edit_step(f, 0, "norm_map", {"ACTION": "QUANTILES"}),
            "preprocessor.json has norm_map.STATE=IDENTITY and eps=1e-08, .*postprocessor.json QUANTILES and 1e-08: c",
        ),
        (lambda f: rename(f, [1]), r"^policy_preprocessor.json: rename_map must be an object, got \[1\]"),
        (
            lambda f: edit_json(f / "config.json", "input_features", "observation.images.image", value=DELETE),
            "^config.json: input_features declares no camera, which are named observation.images.NAME$",
        ),
        (without_weight, "'model.action_in_proj.bias' is missing"),
        (with_weight, "'model.other' in model.safetensors is not part of the model"),
        (
            lambda f: edit_json(f / "config.json", "num_inference_steps", value=0),
            "^config.json: num_inference_steps must be an integer of at least 1, got 0",
        ),
        (
            lambda f: edit_json(f / "config.json", "max_action_dim", value=32),
            r"has shape .*, config.json asks for",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(tmp_path, monkeypatch, harm, message):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
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
        ({"cameras": "image"}, r"must be a list of names, got 'image' \(policy.cameras="),
        ({"cameras": []}, r"must be a list of names, got \[\] \(policy.cameras="),
        ({"dtype": "bfloat16", "train": "all"}, "would round most steps away"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        load_flow_policy(str(write_folder(tmp_path / "a", PI05)), **options)


@pytest.mark.parametrize("name", ["pi0_tiny", "smolvla_tiny"])
def test_numbers_of_the_state_where_the_prompt_has_none(tmp_path, name):
    folder = write_folder(tmp_path / "a", name)
    with pytest.raises(UserError, match="^the checkpoint's prompt has no state, .*: policy.state_numbers=null$"):
        load_flow_policy(str(folder), state_numbers=32)
    load_flow_policy(str(folder), state_numbers=0)


def test_a_new_policy_may_have_any_length():
    policy = load_flow_policy(None, train="all", chunk_steps=5)
    assert (policy.chunk_steps, policy.model.config.chunk_steps, policy.files.config["chunk_size"]) == (5, 5, 5)
    assert load_flow_policy(None).chunk_steps == 16
