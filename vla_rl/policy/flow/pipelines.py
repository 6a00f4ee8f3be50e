"""lerobot's pipelines: the steps of `policy_preprocessor.json` and `policy_postprocessor.json`."""

from __future__ import annotations

from typing import Any

from vla_rl.errors import UserError
from vla_rl.policy.entries import check_object

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
STATE, ACTION, PICTURE = "observation.state", "action", "observation.images."
NEW_LINE_STEP = "pi0_new_line_processor"
STATE_STEP = "pi05_prepare_state_tokenizer_processor_step"
PROMPT_STEPS = ("smolvla_new_line_processor", NEW_LINE_STEP, STATE_STEP)
NORMALISERS = ("normalizer_processor", "unnormalizer_processor")
STEPS = (  # those that are understood here
    *("rename_observations_processor", "to_batch_processor", "device_processor", "tokenizer_processor"),
    *PROMPT_STEPS,
    *NORMALISERS,
    *("relative_actions_processor", "absolute_actions_processor"),
)


def make_pipelines(
    config: dict[str, Any], *, state_in_prompt: bool, tokenizer: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of both pipelines' files for pi0 or pi0.5.

    Args:
        config: content of `config.json`.
        state_in_prompt: the prompt has the state; else it is the instruction and a newline.
        tokenizer: options of its step beside those that pi0 and pi0.5 share.
    """
    features = config["input_features"] | config["output_features"]

    def normaliser(name: str, of: dict[str, Any], pipeline: str, place: int) -> dict[str, Any]:
        options = {"eps": 1e-8, "features": of, "norm_map": config["normalization_mapping"]}
        state_file = f"{pipeline}_step_{place}_{name}.safetensors"
        return {"registry_name": name, "config": options, "state_file": state_file}

    tokens = {"max_length": config["tokenizer_max_length"], "padding": "max_length", "padding_side": "right"}
    tokens |= {"truncation": True, "task_key": "task", **tokenizer}
    before = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        normaliser(NORMALISERS[0], features, "policy_preprocessor", 2),
        {"registry_name": STATE_STEP if state_in_prompt else NEW_LINE_STEP, "config": {}},
        {"registry_name": "tokenizer_processor", "config": tokens},
    ]
    after = [normaliser(NORMALISERS[1], config["output_features"], "policy_postprocessor", 0)]
    return {"name": "policy_preprocessor", "steps": before}, {"name": "policy_postprocessor", "steps": after}


def steps_of(pipeline: dict[str, Any], file: str) -> list[dict[str, Any]]:
    """The steps of a pipeline; UserError unless it is a list of steps."""
    steps = pipeline.get("steps")
    if not isinstance(steps, list):
        raise UserError(f"{file} has no list of steps: copy the file that came with the weights beside them")
    return [check_object(step, f"{file}: a step") for step in steps]


def step_options(
    pipeline: dict[str, Any], registry_name: str, file: str, default: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The config of one step; `default` where there is no such step, unless that is None."""
    for step in steps_of(pipeline, file):
        if step.get("registry_name") == registry_name:
            return check_object(step.get("config"), f"{file}: {registry_name}")
    if default is not None:
        return default
    raise UserError(f"{file} has no step {registry_name!r}: copy the file that came with the weights beside them")
