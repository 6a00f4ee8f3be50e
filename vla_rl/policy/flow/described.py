"""Which processors the files of a checkpoint describe: cameras, normalisers, prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vla_rl.errors import UserError
from vla_rl.policy.entries import check_count, check_object, check_positive
from vla_rl.policy.flow.checkpoint import FlowFiles
from vla_rl.policy.flow.config import FlowConfig
from vla_rl.policy.flow.pipelines import (
    ACTION,
    PICTURE,
    POSTPROCESSOR,
    PREPROCESSOR,
    STATE,
    STATE_STEP,
    STEPS,
    step_options,
    steps_of,
)
from vla_rl.policy.flow.processors import STATISTICS_OF, Normaliser, Processors, PromptRules

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
        UserError: an entry of its files that is missing, or not understood.
    """
    _check_steps(files)
    features = check_object(files.config.get("input_features"), "config.json: input_features")
    declared = [name.removeprefix(PICTURE) for name in features if name.startswith(PICTURE)]
    present = _cameras(declared, files.preprocessor, cameras)
    missing = len(declared) - len(present)
    if config.type == "smolvla":  # which leaves the others out
        missing = min(missing, files.config.get("empty_cameras", 0))
    tokens = step_options(files.preprocessor, "tokenizer_processor", PREPROCESSOR)
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
            with_state=state_numbers != 0
            and any(step["registry_name"] == STATE_STEP for step in files.preprocessor["steps"]),
            slots=check_count(tokens.get("max_length"), f"{PREPROCESSOR}: max_length"),
            padded=tokens.get("padding") == "max_length",
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
    renamed = step_options(preprocessor, "rename_observations_processor", PREPROCESSOR, {}).get("rename_map", {})
    names = [str(renamed[name]).removeprefix(PICTURE) for name in SIMULATOR if name in renamed]
    names = [name for name in names if name in declared] or real
    if len(names) > len(SIMULATOR):
        raise UserError(
            f"the checkpoint declares {len(names)} cameras ({', '.join(names)}), the simulators render the agent's "
            f"view and the wrist's: say which these are, policy.cameras=[{','.join(names[: len(SIMULATOR)])}]"
        )
    return names


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
        (PREPROCESSOR, files.preprocessor, "normalizer_processor"),
        (POSTPROCESSOR, files.postprocessor, "unnormalizer_processor"),
    ):
        options = step_options(pipeline, step, file)
        mode = check_object(options.get("norm_map"), f"{file}: norm_map").get(kind, "IDENTITY")
        if mode not in STATISTICS_OF:
            raise UserError(f"{file}: norm_map.{kind} is {mode!r}; known: {', '.join(STATISTICS_OF)}")
        said[file] = (mode, check_positive(options.get("eps", 1e-8), f"{file}: eps"))
    (mode, eps), after = said.values()
    if kind == "ACTION" and (mode, eps) != after:
        raise UserError(
            f"{PREPROCESSOR} normalises actions by {mode} (eps {eps}), {POSTPROCESSOR} by {after[0]} (eps {after[1]}): "
            "copy the files that came with the weights beside them"
        )
    found = {
        name.removeprefix(f"{feature}."): value
        for name, value in files.statistics.items()
        if name.startswith(f"{feature}.")
    }
    if found and (missing := [name for name in STATISTICS_OF[mode] if name not in found]):
        raise UserError(f"the checkpoint's statistics have no {feature}.{missing[0]}, which {mode} needs")
    dims = _dims_of(feature, files)
    for name in STATISTICS_OF[mode] if found else ():
        if found[name].shape != (dims,):
            raise UserError(
                f"the checkpoint's statistics: {feature}.{name} has shape {list(found[name].shape)}, config.json "
                f"declares {dims} numbers"
            )
    return Normaliser(mode, {name: found[name].float() for name in STATISTICS_OF[mode] if found}, eps)


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
