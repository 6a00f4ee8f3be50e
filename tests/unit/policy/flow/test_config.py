"""What a `config.json` says of a flow model's sizes."""

import pytest

from tests.helpers.flow import GOLDEN, golden_config
from vla_rl.errors import UserError
from vla_rl.policy.flow.config import parse_config


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"prefix_length": -1, "num_expert_layers": -1}, 4),  # lerobot's defaults; its first checkpoints have zeros
        ({"num_vlm_layers": 3}, 3),
        ({"num_vlm_layers": 0}, 5),  # all
    ],
)
def test_what_lerobot_writes_for_smolvla(options, layers):
    config = parse_config(golden_config(GOLDEN / "smolvla_tiny") | options)
    assert config.text.layers == config.expert.layers == layers


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smolvla_tiny", {"prefix_length": 64}, "prefix_length=64: a prefix of fixed length is not supported"),
        ("smolvla_tiny", {"num_expert_layers": 2}, "num_expert_layers=2 is not supported"),
        (
            "smolvla_tiny",
            {"adapt_to_pi_aloha": True},
            "adapt_to_pi_aloha=True: the conversion for Aloha",
        ),
        ("smolvla_tiny", {"attention_mode": "self_attn"}, "attention_mode='self_attn' is not supported"),
        ("pi0_tiny", {"use_relative_actions": True}, "use_relative_actions=True: relative actions are not supported"),
        ("pi0_tiny", {"type": "act"}, "type='act' is no flow policy known here; known: pi0, pi05, smolvla"),
    ],
)
def test_an_option_that_is_not_built_is_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        parse_config(golden_config(GOLDEN / name) | options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pi05_tiny", {"paligemma_variant": ["gemma_2b"]}, r"paligemma_variant must be text, got \['gemma_2b'\]"),
        ("pi05_tiny", {"action_expert_variant": {}}, "action_expert_variant must be text, got {}"),
        ("smolvla_tiny", {"sizes": {}, "vlm_model_name": None}, "vlm_model_name must be text, got None"),
        ("smolvla_tiny", {"prefix_length": "none"}, "prefix_length must be an integer, got 'none'"),
        ("smolvla_tiny", {"num_vlm_layers": 1.5}, "num_vlm_layers must be an integer, got 1.5"),
        *(
            (
                "smolvla_tiny",
                {"expert_width_multiplier": by},
                f"the expert's width, .* expert_width_multiplier, must {of}",
            )
            for by, of in ((1e-9, "be an integer of at least 1, got 0"), (10**30, "be at most 1000000, got .*"))
        ),
        ("smolvla_tiny", {"num_expert_layers": True}, "num_expert_layers must be an integer, got True"),
    ],
)
def test_an_entry_of_another_type_is_named(name, options, message):
    with pytest.raises(UserError, match=f"^config.json: {message}$"):
        parse_config(golden_config(GOLDEN / name) | options)


def test_an_integer_is_taken_for_the_number_that_it_is():
    """Where arithmetic needs a float: torch has no integer as large."""
    periods = parse_config(golden_config(GOLDEN / "pi05_tiny") | {"min_period": 1, "max_period": 10**30}).periods
    assert list(map(type, periods)) == [float, float]
    with pytest.raises(UserError, match="^config.json: max_period must be a finite number above 0, got 1000"):
        parse_config(golden_config(GOLDEN / "pi05_tiny") | {"max_period": 10**400})


@pytest.mark.parametrize(("size", "value"), [("layers", 3), ("kv_heads", 2), ("head_dim", 8)])
def test_an_expert_that_cannot_read_the_cache_is_refused(size, value):
    raw = golden_config(GOLDEN / "pi05_tiny")
    raw["sizes"]["gemma_300m"][size] = value
    with pytest.raises(UserError, match=f"both must have the same {size}, got {value} and "):
        parse_config(raw)


@pytest.mark.parametrize(
    ("name", "part", "size", "value", "message"),
    [
        ("pi05_tiny", "vision", "heads", 3, "sizes.vision.width must be a multiple of heads, 3, got 32"),
        ("pi05_tiny", "vision", "patch_px", 5, "sizes.vision.image_px must be a multiple of patch_px, 5, got 56"),
        ("pi05_tiny", "gemma_300m", "width", 7, "sizes: the action expert's width must be even, got 7$"),
        (
            "pi05_tiny",
            "gemma_2b",
            "head_dim",
            7,
            "sizes.gemma_2b.head_dim must be even, got 7$",
        ),
        ("pi05_tiny", "gemma_2b", "heads", 3, "sizes.gemma_2b.heads must be a multiple of kv_heads, 2, got 3"),
        ("smolvla_tiny", "vision", "scale_factor", 7, "patches on a side must be a multiple of scale_factor, 7, got "),
        ("smolvla_tiny", "text", "layers", 1001, "sizes.text.layers must be at most 1000, got 1001"),
    ],
)
def test_sizes_that_do_not_fit_each_other(name, part, size, value, message):
    raw = golden_config(GOLDEN / name)
    if part == "gemma_2b":
        raw["sizes"][part]["kv_heads"] = 2
    raw["sizes"][part][size] = value
    with pytest.raises(UserError, match=f"^config.json: .*{message}"):
        parse_config(raw)
