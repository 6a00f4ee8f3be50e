"""Which processors the files of a checkpoint describe: cameras, normalisers, prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.policy.entries import check_count, check_object, check_positive, shown
from vla_rl.policy.flow.checkpoint import FlowFiles
from vla_rl.policy.flow.config import FlowConfig, integer
from vla_rl.policy.flow.pipelines import (
    ACTION,
    NORMALISERS,
    PICTURE,
    POSTPROCESSOR,
    PREPROCESSOR,
    PROMPT_STEPS,
    STATE,
    STATE_STEP,
    STEPS,
    step_options,
    steps_of,
)
from vla_rl.policy.flow.processors import STATISTICS_OF, Mode, Normaliser, Processors, PromptRules
from vla_rl.policy.weights import check_finite

EMPTY = "empty_camera_"  # part of the name of a camera that is declared and never brought
SIMULATOR = (f"{PICTURE}image", f"{PICTURE}image2")  # lerobot's names of LIBERO's cameras, as they lie on a frame


def make_processors(
    config: FlowConfig, files: FlowFiles, *, cameras: Sequence[str] | None = None, state_numbers: int | None = None
) -> Processors:
    """The processors that a checkpoint describes.

    Args:
        cameras: which of the checkpoint's cameras the pictures of a frame are, in their order; None: those that the
            checkpoint declares, or those to which it renames the simulator's.
        state_numbers: see `PromptRules`.

    Raises:
        UserError: an entry of its files that is missing, or not understood; numbers of the state where the prompt has
            none.
    """
    _check_steps(files)
    features = check_object(files.config.get("input_features"), "config.json: input_features")
    declared = [name.removeprefix(PICTURE) for name in features if name.startswith(PICTURE)]
    present = _cameras(declared, files.preprocessor, cameras)
    missing = len(declared) - len(present)
    if config.type == "smolvla":  # which leaves the others out
        missing = min(missing, integer(files.config, "empty_cameras", 0))
    tokens = step_options(files.preprocessor, "tokenizer_processor", PREPROCESSOR)
    state_in_prompt = _state_in_prompt(files)
    if state_numbers and not state_in_prompt:
        raise UserError(
            f"the checkpoint's prompt has no state, so that policy.state_numbers={state_numbers} would do nothing: "
            "policy.state_numbers=null"
        )
    return Processors(
        config.type,
        cameras=present,
        missing=missing,
        picture_px=_picture_px(config, files.config),
        proprio_dims=_dims_of(STATE, files),
        action_dims=_dims_of(ACTION, files),
        state=_normaliser("STATE", STATE, files),
        action=_normaliser("ACTION", ACTION, files),
        state_width=config.state_width,
        prompt=PromptRules(
            with_state=state_in_prompt and state_numbers != 0,
            slots=check_count(tokens.get("max_length"), f"{PREPROCESSOR}: max_length"),
            padded=_padded(tokens),
            state_numbers=state_numbers,
        ),
        tokenizer=files.tokenizer,
        vocabulary=config.vocabulary,
    )


def _cameras(declared: Sequence[str], preprocessor: dict[str, Any], wanted: Sequence[str] | None) -> list[str]:
    """The checkpoint's cameras that an observation brings."""
    real = [name for name in declared if EMPTY not in name]
    if wanted is not None:
        for name in wanted:
            if name not in declared or list(wanted).count(name) > 1:
                raise UserError(
                    f"policy.cameras={list(wanted)}: the checkpoint's cameras are {', '.join(real)}, each of them once "
                    f"(policy.cameras=[{','.join(real)}])"
                )
        return list(wanted)
    options = step_options(preprocessor, "rename_observations_processor", PREPROCESSOR, {})
    renamed = check_object(options.get("rename_map", {}), f"{PREPROCESSOR}: rename_map")
    names = [str(renamed[name]).removeprefix(PICTURE) for name in SIMULATOR if name in renamed]
    names = [name for name in names if name in declared] or real
    if not names:
        raise UserError(f"config.json: input_features declares no camera, which are named {PICTURE}NAME")
    if len(names) > len(SIMULATOR):
        raise UserError(
            f"the checkpoint declares {len(names)} cameras ({', '.join(names)}), the simulators render the agent's "
            f"view and the wrist's: say which these are, policy.cameras=[{','.join(names[: len(SIMULATOR)])}]"
        )
    return names


def _state_in_prompt(files: FlowFiles) -> bool:
    """Whether the prompt has the state; else it is the instruction and a newline."""
    steps = {step["registry_name"] for step in steps_of(files.preprocessor, PREPROCESSOR)}
    if steps.isdisjoint(PROMPT_STEPS):
        raise UserError(
            f"{PREPROCESSOR} has no step that writes the prompt ({', '.join(PROMPT_STEPS)}): copy the file that came "
            "with the weights beside them"
        )
    return STATE_STEP in steps


def _padded(tokens: dict[str, Any]) -> bool:
    """Prompts always have their largest length."""
    if tokens.get("padding") not in ("max_length", "longest"):
        raise UserError(f"{PREPROCESSOR}: padding must be max_length or longest, got {shown(tokens.get('padding'))}")
    return tokens["padding"] == "max_length"


def _check_steps(files: FlowFiles) -> None:
    """Raise UserError for a step that is not understood, or that would change what is read."""
    for name, pipeline in ((PREPROCESSOR, files.preprocessor), (POSTPROCESSOR, files.postprocessor)):
        for step in steps_of(pipeline, name):
            if step.get("registry_name") not in STEPS:
                raise UserError(f"{name}: the step {step.get('registry_name')!r} is not understood")
            options = check_object(step.get("config", {}), f"{name}: {step['registry_name']}")
            if options.get("enabled"):
                raise UserError(f"{name}: {step['registry_name']} is switched on, and not supported")
            if options.get("padding_side", "right") != "right":
                raise UserError(f"{name}: padding_side is {options['padding_side']!r}, only 'right' is supported")


def _normaliser(kind: str, feature: str, files: FlowFiles) -> Normaliser:
    """Of one feature: both pipelines say how, and have to agree."""
    said = {}
    for file, pipeline, step in (
        (PREPROCESSOR, files.preprocessor, NORMALISERS[0]),
        (POSTPROCESSOR, files.postprocessor, NORMALISERS[1]),
    ):
        options = step_options(pipeline, step, file)
        mode = check_object(options.get("norm_map"), f"{file}: norm_map").get(kind, "IDENTITY")
        if mode not in list(STATISTICS_OF):  # a list of the file has no hash
            raise UserError(f"{file}: norm_map.{kind} is {shown(mode)}; known: {', '.join(STATISTICS_OF)}")
        said[file] = (mode, check_positive(options.get("eps", 1e-8), f"{file}: eps"))
    (mode, eps), after = said.values()
    if (mode, eps) != after:
        raise UserError(
            f"{PREPROCESSOR} has norm_map.{kind}={mode} and eps={eps}, {POSTPROCESSOR} {after[0]} and {after[1]}: copy "
            "the files that came with the weights beside them"
        )
    return Normaliser(mode, _statistics_of(feature, mode, files), eps)


def _statistics_of(feature: str, mode: Mode, files: FlowFiles) -> dict[str, Tensor]:
    """What `mode` needs, float32; empty where the checkpoint has no statistics of the feature."""
    found = {
        name.removeprefix(f"{feature}."): value
        for name, value in files.statistics.items()
        if name.startswith(f"{feature}.")
    }
    if not found or mode == "IDENTITY":
        return {}
    first, second = STATISTICS_OF[mode]
    step = next((step for step in steps_of(files.preprocessor, PREPROCESSOR) if "state_file" in step), {})
    where = str(step.get("state_file", "the checkpoint's statistics"))
    dims = _dims_of(feature, files)
    for name in (first, second):
        if name not in found:
            raise UserError(f"{where} has no {feature}.{name}, which {mode} needs")
        if found[name].shape != (dims,):
            shape = list(found[name].shape)
            raise UserError(f"{where}: {feature}.{name} has shape {shape}, config.json declares {dims} numbers")
        check_finite(f"{feature}.{name}", found[name], Path(where))
    span, least = (found[second], 0) if mode == "MEAN_STD" else (found[second] - found[first], f"{feature}.{first}")
    if (span < 0).any():
        raise UserError(f"{where}: {feature}.{second} is below {least}: copy the file that came with the weights")
    return {name: found[name].float() for name in (first, second)}


def _dims_of(feature: str, files: FlowFiles) -> int:
    """Numbers of the state or of an action; 0: the checkpoint reads no state."""
    entry = "output_features" if feature == ACTION else "input_features"
    features = check_object(files.config.get(entry), f"config.json: {entry}")
    return _dims(features.get(feature), feature) if feature == ACTION or feature in features else 0


def _dims(feature: Any, name: str) -> int:
    shape = check_object(feature, f"config.json: {name}").get("shape")
    if not isinstance(shape, list) or len(shape) != 1:
        raise UserError(f"config.json: {name} must have a shape of one number, got {shape!r}")
    return check_count(shape[0], f"config.json: {name}")


def _picture_px(config: FlowConfig, raw: dict[str, Any]) -> tuple[int, int]:
    """Height and width. SmolVLA's entry is width, height."""
    entry = "resize_imgs_with_padding" if config.type == "smolvla" else "image_resolution"
    size = raw.get(entry, [config.vision.image_px] * 2)
    if size != [config.vision.image_px] * 2:
        raise UserError(
            f"config.json: {entry} must be [{config.vision.image_px}, {config.vision.image_px}], got {size!r}"
        )
    return config.vision.image_px, config.vision.image_px
