"""Small files of a checkpoint that are malformed or written by other programs: loaded right, or refused in one line.

Every case changes one file of a good checkpoint and loads it through `inspect_checkpoint`, as the doctor does, and
through `load_pretrained`.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.json_files import DELETE, edit_json
from tests.helpers.policies import make_observation
from vla_rl.errors import UserError
from vla_rl.policy import load_policy, load_pretrained, save_trained
from vla_rl.policy.openvla_oft.checkpoint import inspect_checkpoint
from vla_rl.policy.openvla_oft.config import parse_config
from vla_rl.policy.openvla_oft.processor import Prompts
from vla_rl.policy.openvla_oft.tiny import tiny_config

STATISTICS, CONFIG = "dataset_statistics.json", "config.json"
PREPROCESSOR, TOKENIZER = "preprocessor_config.json", "tokenizer.json"
NAN = float("nan")


@pytest.fixture
def copy(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "copy")
    return tmp_path / "copy"


def actions(policy):
    return policy.act(make_observation(2), [0, 0], 0.0).command_NLA


ACTION = ("libero_test", "action")
TEXT = ("text_config",)
REFUSED = [
    (STATISTICS, ("libero_test",), None, "dataset_statistics.json: 'libero_test' must be an object, got null"),
    (STATISTICS, ACTION, [1], r"'action' of 'libero_test' must be an object, got \[1\]"),
    (STATISTICS, (*ACTION, "q01"), None, "'q01' must be a list of finite numbers, got null"),
    (STATISTICS, (*ACTION, "q01"), [0.0] * 14, r"'q99' must be a list of 14 finite numbers, got .* \(7 values\)"),
    (STATISTICS, (*ACTION, "q99"), [1.0] * 6, r"'q99' must be a list of 7 finite numbers, got .* \(6 values\)"),
    (STATISTICS, (*ACTION, "q99"), [NAN] + [1.0] * 6, "'q99' must be a list of 7 finite numbers, got .NaN, "),
    (STATISTICS, (*ACTION, "q99"), [10**400] * 7, "'q99' must be a list of 7 finite numbers, got .1000"),
    (STATISTICS, (*ACTION, "q99"), ["1"] * 7, "'q99' must be a list of 7 finite numbers"),
    (STATISTICS, (*ACTION, "q99"), [-9.0] * 7, "'q01' exceeds 'q99' in dimension 0, .* are they swapped"),
    (STATISTICS, (*ACTION, "mask"), True, "'mask' must be a list of 7 times true or false, got True"),
    (STATISTICS, (*ACTION, "mask"), [True] * 6 + ["no"], "'mask' must be a list of 7 times true or false"),
    (CONFIG, TEXT, None, "config.json: text_config must be an object, got null"),
    (CONFIG, ("chunk_steps",), None, "config.json: chunk_steps must be an integer of at least 1, got null"),
    (CONFIG, ("chunk_steps",), 8.5, "config.json: chunk_steps must be an integer"),
    (CONFIG, ("n_action_bins",), 128, "config.json: n_action_bins is 128; .* has 256 bins"),
    (CONFIG, ("image_sizes",), 128, "config.json: image_sizes must hold a size for each of the two towers, got 128"),
    (CONFIG, ("image_sizes",), [[128, 96]] * 2, r"image_sizes\[0\] must be the side of a square image"),
    (
        CONFIG,
        ("image_sizes",),
        [120, 128],
        r"image_sizes\[0\] must be a multiple of .* patch size, 16, got 120",
    ),
    (CONFIG, ("timm_model_ids",), ["vit_so400m_patch14_siglip_224"], "timm_model_ids must name two vision towers"),
    (CONFIG, ("timm_model_ids",), [None, None], r"timm_model_ids\[0\] is None; known are"),
    (CONFIG, ("use_proprio",), "yes", 'config.json: use_proprio must be true or false, got "yes"'),
    (CONFIG, ("tiny_overrides", "dinov2"), None, "config.json: tiny_overrides.dinov2 must be an object, got null"),
    (CONFIG, ("tiny_overrides", "dinov2", "depth"), DELETE, "tiny_overrides.dinov2.depth must be an integer"),
    (CONFIG, (*TEXT, "vocab_size"), DELETE, "text_config.vocab_size must be an integer of at least 1, got null"),
    (CONFIG, (*TEXT, "vocab_size"), 10**30, "text_config.vocab_size must be at most 1000000, got 1000000000000"),
    (CONFIG, ("pad_to_multiple_of",), 2, "pad_token_id is 384, expected .* less pad_to_multiple_of, 446"),
    (CONFIG, ("pad_token_id",), None, "config.json: pad_token_id is None, expected .*, 384"),
    (CONFIG, (*TEXT, "vocab_size"), 300, "text_config.vocab_size 300 has no room for 256 action tokens"),
    (CONFIG, (*TEXT, "num_attention_heads"), 5, "hidden_size must be a multiple of num_attention_heads, 5, got 128"),
    (CONFIG, (*TEXT, "rms_norm_eps"), 0, "text_config.rms_norm_eps must be a finite number above 0, got 0"),
    (CONFIG, (*TEXT, "rms_norm_eps"), 10**400, "text_config.rms_norm_eps must be a finite number above 0, got 1000"),
    (CONFIG, (*TEXT, "num_hidden_layers"), 10**6, "text_config.num_hidden_layers must be at most 1000, got 1000000"),
    (CONFIG, ("tiny_overrides", "siglip", "depth"), 10**6, "tiny_overrides.siglip.depth must be at most 1000, got 1"),
    (CONFIG, (*TEXT, "hidden_act"), "gelu", "text_config.hidden_act is 'gelu'; this project's Llama has 'silu'"),
    (CONFIG, (*TEXT, "rope_theta"), None, "text_config.rope_theta must be a finite number above 0, got null"),
    (CONFIG, (*TEXT, "rope_scaling"), {"type": "linear", "factor": 2.0}, r"scaled rotary angles \(linear, factor\)"),
    (CONFIG, (*TEXT, "rope_scaling"), "linear", "text_config.rope_scaling must be an object"),
    (CONFIG, (*TEXT, "rope_parameters"), {"rope_type": "yarn"}, r"scaled rotary angles \(yarn\)"),
    (
        CONFIG,
        (*TEXT, "rope_parameters"),
        {"rope_theta": 5e5},
        "different bases .*: rope_theta 10000.0, rope_p",
    ),
    (PREPROCESSOR, ("center_crop_area",), None, "center_crop_area must be a finite number above 0, got null"),
    (PREPROCESSOR, ("center_crop_area",), 1.5, "center_crop_area must be at most 1, got 1.5"),
    (PREPROCESSOR, ("means",), [[0.5] * 3, [0.5] * 2], "'means' of tower 1 must be a list of 3 finite numbers"),
    (PREPROCESSOR, ("stds",), [[0.5] * 3, [0.5, 0.0, 0.5]], "'stds' must be above 0"),
    (TOKENIZER, ("model",), DELETE, "tokenizer.json is no tokenizer"),
    (TOKENIZER, ("model", "vocab"), {}, "tokenizer.json is no tokenizer .*Missing .UNK. token"),
    (TOKENIZER, ("model", "vocab", "new"), 448, "tokenizer.json has ids up to 448, the model embeds 448 alone"),
]


@pytest.mark.parametrize(
    ("name", "keys", "value", "message"), REFUSED, ids=[f"{case[1][-1]}-{n}" for n, case in enumerate(REFUSED)]
)
def test_a_malformed_entry_is_named(copy, name, keys, value, message):
    edit_json(copy / name, *keys, value=value)
    for load in (load_pretrained, lambda folder: inspect_checkpoint(str(folder))):
        with pytest.raises(UserError, match=message) as refused:
            load(copy)
        assert name in str(refused.value)
        assert "\n" not in str(refused.value)


def test_proprioception_is_checked_where_the_model_reads_it(copy):
    edit_json(copy / STATISTICS, "libero_test", "proprio", "q01", value=[0.0] * 7)
    assert load_pretrained(copy).statistics.proprio is None
    edit_json(copy / CONFIG, "use_proprio", value=True)
    with pytest.raises(UserError, match="'proprio_projector.fc1.weight' is missing"):
        load_pretrained(copy)
    weights = load_file(copy / "model.safetensors")
    shapes = {"fc1.weight": (128, 8), "fc1.bias": (128,), "fc2.weight": (128, 128), "fc2.bias": (128,)}
    weights |= {f"proprio_projector.{name}": torch.ones(shape) for name, shape in shapes.items()}
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(UserError, match="'proprio' of 'libero_test': 'q01' must be a list of 8 finite numbers"):
        load_pretrained(copy)


@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [
        (STATISTICS, (*ACTION, "mask"), [1, 1, 1, 1, 1, 1, 0]),
        (CONFIG, ("image_sizes",), [[128, 128], [128, 128]]),
        (CONFIG, ("norm_stats",), None),
        (CONFIG, (*TEXT, "rope_scaling"), None),
        (CONFIG, (*TEXT, "rope_parameters"), {"rope_theta": 10000.0, "rope_type": "default"}),
        (TOKENIZER, ("truncation",), {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}),
        (
            TOKENIZER,
            ("padding",),
            {
                **{"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None},
                **{"pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
            },
        ),
        (TOKENIZER, ("post_processor",), None),
        (TOKENIZER, ("post_processor", "single"), []),
    ],
    ids=[
        "mask",
        "image_sizes",
        "norm_stats",
        "rope_scaling",
        "rope_parameters",
        "truncation",
        "padding",
        "no_bos",
        "no_text",
    ],
)
def test_what_other_programs_write_changes_no_action(copy, tiny_policy, name, keys, value):
    edit_json(copy / name, *keys, value=value)
    assert torch.equal(actions(load_pretrained(copy)), actions(tiny_policy))


def special(name, token_id):
    return {"SpecialToken": {"id": name, "type_id": 0}}, {name: {"id": name, "ids": [token_id], "tokens": [name]}}


@pytest.mark.parametrize("kind", ["none", "bos_and_eos", "eos"])
def test_the_prompt_has_neither_bos_nor_eos_whatever_the_tokenizer_adds(tiny_policy, kind):
    (bos, bos_token), (eos, eos_token) = special("<s>", 1), special("</s>", 2)
    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = {"none": [text], "bos_and_eos": [bos, text, eos], "eos": [text, eos]}[kind]
    content = json.loads(tiny_policy.files.tokenizer)
    content["post_processor"] |= {"single": single, "special_tokens": bos_token | eos_token}
    config = tiny_policy.model.config
    instruction = ["put the bowl on the plate"]
    ids, mask = Prompts(json.dumps(content), config)(instruction)
    expected, _ = tiny_policy.prompts(instruction)
    assert torch.equal(ids, expected)
    assert ids[mask].tolist()[0] == 3
    assert ids[mask].tolist()[-1] == 5


def test_a_tokenizer_of_another_model(tiny_policy):
    config, content = tiny_policy.model.config, json.loads(tiny_policy.files.tokenizer)
    vocab = content["model"]["vocab"]
    vocab["<s>"], vocab["basket"] = vocab["basket"], vocab["<s>"]
    with pytest.raises(UserError, match="tokenizer.json: the id of '<s>' is .*, the model's is 1"):
        Prompts(json.dumps(content), config)
    del vocab["▁"]
    content["added_tokens"] = []
    with pytest.raises(UserError, match="tokenizer.json has no token '▁'"):
        Prompts(json.dumps(content), config)


def test_the_rotary_base_of_transformers_5():
    raw = tiny_config()
    del raw["text_config"]["rope_theta"]
    assert parse_config(raw).llama.rope_theta == 10000.0
    raw["text_config"]["rope_parameters"] = {"rope_theta": 500000.0, "rope_type": "default"}
    assert parse_config(raw).llama.rope_theta == 500000.0


def test_a_byte_order_mark(copy, tiny_policy):
    for name in (STATISTICS, CONFIG, PREPROCESSOR, TOKENIZER):
        (copy / name).write_bytes(b"\xef\xbb\xbf" + (copy / name).read_bytes())
    assert torch.equal(actions(load_pretrained(copy)), actions(tiny_policy))


def test_text_that_is_not_utf8(copy):
    (copy / TOKENIZER).write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="tokenizer.json is not text in UTF-8"):
        load_pretrained(copy)


def test_statistics_of_no_dataset(copy):
    (copy / STATISTICS).write_text("{}")
    with pytest.raises(UserError, match="dataset_statistics.json has 0 datasets: copy the dataset_statistics.json"):
        load_pretrained(copy)
    (copy / STATISTICS).unlink()
    edit_json(copy / CONFIG, "norm_stats", value={"libero_test": None})
    with pytest.raises(UserError, match="config.json: norm_stats: 'libero_test' must be an object, got null"):
        load_pretrained(copy)


def test_the_processor_of_transformers_5(copy, tiny_policy, tmp_path):
    preprocessor = json.loads((copy / PREPROCESSOR).read_text())
    (copy / PREPROCESSOR).unlink()
    processor = {"image_processor": preprocessor, "processor_class": "PrismaticProcessor"}
    (copy / "processor_config.json").write_text(json.dumps(processor))
    policy = load_pretrained(copy)
    assert torch.equal(actions(policy), actions(tiny_policy))
    save_trained(policy, tmp_path / "again")
    assert json.loads((tmp_path / "again" / PREPROCESSOR).read_text()) == preprocessor
    (copy / "processor_config.json").write_text("{}")
    with pytest.raises(UserError, match="processor_config.json: image_processor must be an object, got null"):
        load_pretrained(copy)


def test_a_tokenizer_model_alone(copy):
    (copy / TOKENIZER).unlink()
    with pytest.raises(UserError, match="has no tokenizer.json: copy it from"):
        load_pretrained(copy)
    (copy / "tokenizer.model").touch()
    with pytest.raises(UserError, match="has no tokenizer.json: make it of tokenizer.model with transformers, Llama"):
        load_pretrained(copy)


def test_a_run_or_adapters_given_as_a_checkpoint(tmp_path, tiny_folder):
    policy = tmp_path / "policy"
    shutil.copytree(tiny_folder, policy)
    with pytest.raises(UserError, match=f"it is a run, and its policy is policy.checkpoint={policy}$"):
        load_policy(str(tmp_path))
    (policy / "config.json").unlink()
    (policy / "adapter_config.json").touch()
    with pytest.raises(UserError, match=f"it is a run with adapters.* policy.adapter={policy}$"):
        load_policy(str(tmp_path))
    with pytest.raises(UserError, match=f"it holds adapters; .* policy.adapter={policy}$"):
        load_policy(str(policy))


def test_a_home_folder_is_spelt_out(copy, monkeypatch):
    monkeypatch.setenv("HOME", str(copy.parent))
    assert load_policy(f"~/{copy.name}").statistics.key == "libero_test"


def test_film_towers_beside_the_weights(copy):
    (copy / "vision_backbone--150000_checkpoint.pt").touch()
    with pytest.raises(UserError, match=r"vision towers with FiLM \(vision_backbone--150000_checkpoint.pt\)"):
        load_pretrained(copy)


def test_option_types():
    for options, message in (
        ({"unnorm_key": 5}, "policy.unnorm_key must be the name of a dataset, got 5"),
        ({"adapter": 5, "lora": {"r": 4, "alpha": 4}}, "policy.adapter must be a folder, got 5"),
    ):
        with pytest.raises(UserError, match=message):
            load_policy(None, **options)
