"""A flow policy's checkpoint is a folder as lerobot writes it; this reads and writes its files.

    config.json  model.safetensors  tokenizer.json
    policy_preprocessor.json   policy_preprocessor_step_N_normalizer_processor.safetensors
    policy_postprocessor.json  policy_postprocessor_step_N_unnormalizer_processor.safetensors

lerobot's own folders name a tokenizer on the hub in place of `tokenizer.json`. A folder of openpi's torch port is read
too (`vla_rl.policy.flow.openpi`), and written back as lerobot's. Every tensor is accounted for. Names may
begin with `model.` or not, and the vision tower of pi0 and pi0.5 may lack a level (`vision_model.`), as newer versions
of transformers write it; a folder is written back in the spelling it was read in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.files import read_json, read_text
from vla_rl.policy.flow.config import FlowConfig, parse_config
from vla_rl.policy.flow.model import FlowModel
from vla_rl.policy.flow.openpi import is_openpi, to_lerobot
from vla_rl.policy.flow.pi import Pi
from vla_rl.policy.flow.pipelines import NORMALISERS, POSTPROCESSOR, PREPROCESSOR, step_options, steps_of
from vla_rl.policy.flow.smolvla import SmolVLA
from vla_rl.policy.hub import what_it_is
from vla_rl.policy.weights import check_finite, check_tensors, open_shard, read_tensors, save_tensors, shard_files

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
PREFIX = "model."
COUNTS = (torch.int32, torch.int64)  # how many values statistics are of, which lerobot keeps beside them
TOWER = ".vision_tower.vision_model."  # of pi0 and pi0.5, or without its second level
OUTPUT_HEAD = ("paligemma.lm_head.weight", "vlm.lm_head.weight")  # of the language model
# what a checkpoint of one of the two is called that the other reads under its own name
TIME_NAMES = {"pi05": ("action_time_mlp_", "time_mlp_"), "pi0": ("time_mlp_", "action_time_mlp_")}
LAYOUT = "a flow policy's checkpoint is a folder as lerobot writes it, since its version 0.4 (policy.checkpoint=FOLDER)"


@dataclass(slots=True)
class FlowFiles:
    """What a checkpoint holds beside the weights that are run, to be written back.

    Attributes:
        statistics: of the features, `observation.state.mean` and so on.
        spelling: the model's name of a tensor -> the file's.
        unused: tensors that are never run, by the file's names.
    """

    config: dict[str, Any]
    preprocessor: dict[str, Any]
    postprocessor: dict[str, Any]
    statistics: dict[str, Tensor]
    tokenizer: str
    spelling: dict[str, str] = field(default_factory=dict)
    unused: dict[str, Tensor] = field(default_factory=dict)


def build_model(config: FlowConfig) -> FlowModel:
    return (SmolVLA if config.type == "smolvla" else Pi)(config)


def read_files(folder: Path, state_numbers: int | None = None) -> tuple[FlowConfig, FlowFiles]:
    """Everything in a checkpoint but its weights.

    Args:
        state_numbers: see `PromptRules`; openpi's folders do not say.

    Raises:
        UserError: a file is missing, or does not fit.
    """
    raw = _read(folder, CONFIG)
    if is_openpi(raw):
        raw, preprocessor, postprocessor, statistics = to_lerobot(folder, raw, _names(folder), state_numbers)
        config = parse_config(raw)
    else:
        config = parse_config(raw)
        preprocessor, postprocessor = _read(folder, PREPROCESSOR), _read(folder, POSTPROCESSOR)
        statistics = _statistics(folder, preprocessor, postprocessor)
    tokenizer = _read_tokenizer(folder, preprocessor)
    return config, FlowFiles(raw, preprocessor, postprocessor, statistics, tokenizer)


def read_weights(folder: Path, model: FlowModel, files: FlowFiles, dtype: torch.dtype) -> None:
    """Fill a model that is on the meta device, and note in `files` what else its file holds.

    Args:
        dtype: of the vision-language model; the action expert is float32.

    Raises:
        UserError: a tensor that is missing, not expected, of another shape, or not finite.
    """
    run, idle = _expected_shapes(folder, model, files)
    shapes = {files.spelling[name]: shape for name, shape in (run | idle).items()}
    expert = {id(parameter) for parameter in model.expert_parameters()}
    in_float32 = {files.spelling[name] for name, parameter in model.named_parameters() if id(parameter) in expert}
    stored = read_tensors(folder, shapes, lambda name: torch.float32 if name in in_float32 else dtype)
    files.unused = {files.spelling[name]: stored[files.spelling[name]] for name in idle}
    model.load_state_dict({name: stored[files.spelling[name]] for name in run}, assign=True)


def check_weights(folder: Path, model: FlowModel, files: FlowFiles) -> int:
    """Raise what `read_weights` would raise; one tensor at a time, so that little memory is needed.

    Returns:
        How many tensors the file holds.
    """
    run, idle = _expected_shapes(folder, model, files)
    shapes = {files.spelling[name]: shape for name, shape in (run | idle).items()}
    check_tensors(folder, shapes)
    return len(shapes)


def _expected_shapes(
    folder: Path, model: FlowModel, files: FlowFiles
) -> tuple[dict[str, torch.Size], dict[str, torch.Size]]:
    """By the model's names, of what is run, and of what the files hold beside it. Notes their spelling."""
    names = _names(folder)
    run = {name: value.shape for name, value in model.state_dict().items()}
    idle = {name: torch.Size(shape) for name, shape in _idle_shapes(model).items()}
    files.spelling = spell(names, [*run, *idle], model.config.type)
    idle = {name: shape for name, shape in idle.items() if files.spelling[name] in names}
    (embedding,) = (name for name in run if name.endswith("embed_tokens.weight"))
    if files.spelling[embedding] not in names:  # published base models have it under the output head's name alone
        for head in [name for name in idle if name.endswith(OUTPUT_HEAD)]:
            del idle[head]
            files.spelling[embedding] = files.spelling[head]
    return run, idle


def _idle_shapes(model: FlowModel) -> dict[str, tuple[int, ...]]:
    """Tensors that a file may hold and the model does not use: output heads, and a projection of pi0.5's state."""
    config, shapes = model.config, model.unused_shapes()
    if config.type == "pi05":
        shapes["state_proj.weight"], shapes["state_proj.bias"] = (
            (config.expert.width, config.state_width),
            (config.expert.width,),
        )
    return shapes


def spell(names: Iterable[str], ours: Iterable[str], kind: str) -> dict[str, str]:
    """How a file spells the model's names of tensors: with or without `model.`, the vision tower's second level, or
    the other model's name of the layers for the time."""
    names = set(names)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    short = not any(TOWER in name for name in names)
    other, own = TIME_NAMES.get(kind, ("", ""))
    renamed = bool(other) and any(name.startswith(prefix + other) for name in names)

    def of(name: str) -> str:
        if short:
            name = name.replace(TOWER, ".vision_tower.")
        if renamed and name.startswith(own):
            name = other + name.removeprefix(own)
        return prefix + name

    return {name: of(name) for name in ours}


def _names(folder: Path) -> set[str]:
    """Of all tensors in the weight files."""
    names: set[str] = set()
    for shard in shard_files(folder):
        with open_shard(shard) as stored:
            names |= set(stored.keys())
    return names


def _read(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).exists():
        raise UserError(f"checkpoint {folder} has no {name}{what_it_is(folder, LAYOUT)}")
    return read_json(folder / name)


def _statistics(folder: Path, preprocessor: dict[str, Any], postprocessor: dict[str, Any]) -> dict[str, Tensor]:
    """Those of both pipelines, which have to be the same."""
    before = read_statistics(folder, preprocessor, PREPROCESSOR)
    after = read_statistics(folder, postprocessor, POSTPROCESSOR)
    for name in sorted(before.keys() & after.keys()):
        if not torch.equal(before[name], after[name]):
            raise UserError(
                f"checkpoint {folder}: {PREPROCESSOR} and {POSTPROCESSOR} have different statistics {name}: copy the "
                "files that came with the weights beside them"
            )
    return before | after


def read_statistics(folder: Path, pipeline: dict[str, Any], file: str) -> dict[str, Tensor]:
    """The tensors that the steps of a pipeline name.

    Raises:
        UserError: a file is missing or damaged, or holds what is not finite.
    """
    statistics: dict[str, Tensor] = {}
    for step in steps_of(pipeline, file):
        state_file = step.get("state_file")
        if state_file is None:
            continue
        path = folder / Path(str(state_file)).name
        if not path.exists():
            raise UserError(f"checkpoint {folder} has no {path.name}, which {file} names: copy it beside the weights")
        with open_shard(path) as stored:
            statistics |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118, not a dict
        for name, value in statistics.items():
            if value.dtype not in COUNTS:
                check_finite(name, value, path)
    return statistics


def _read_tokenizer(folder: Path, preprocessor: dict[str, Any]) -> str:
    """Of the folder, or by the name of a repository on the hub."""
    if (folder / TOKENIZER).exists():
        return read_text(folder / TOKENIZER)
    name = step_options(preprocessor, "tokenizer_processor", PREPROCESSOR).get("tokenizer_name")
    try:
        return read_text(Path(huggingface_hub.hf_hub_download(str(name), TOKENIZER)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as e:
        raise UserError(
            f"checkpoint {folder} has no {TOKENIZER}, and that of {name} is not available from the Hugging Face hub "
            f"({type(e).__name__}; some ask you to accept terms first): copy {name}'s {TOKENIZER} into the folder"
        ) from e


def save_files(folder: Path, model_state: Mapping[str, Tensor], files: FlowFiles) -> None:
    """Write a checkpoint that lerobot reads.

    Args:
        model_state: the model's state dict.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if files.statistics:
        _name_statistics(files)
    spelled = {files.spelling.get(name, PREFIX + name): value.cpu() for name, value in model_state.items()}
    save_tensors(spelled | files.unused, folder / "model.safetensors")
    for name, content in (
        (CONFIG, files.config),
        (PREPROCESSOR, files.preprocessor),
        (POSTPROCESSOR, files.postprocessor),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / TOKENIZER).write_text(files.tokenizer, encoding="utf-8")
    for pipeline in (files.preprocessor, files.postprocessor):
        for step in pipeline["steps"]:
            if "state_file" in step:
                save_tensors(files.statistics, folder / step["state_file"])


def _name_statistics(files: FlowFiles) -> None:
    """A place for the statistics of demonstrations, where a checkpoint came without: lerobot's names."""
    for name, pipeline in (("policy_preprocessor", files.preprocessor), ("policy_postprocessor", files.postprocessor)):
        for place, step in enumerate(pipeline["steps"]):
            if step["registry_name"] in NORMALISERS:
                step.setdefault("state_file", f"{name}_step_{place}_{step['registry_name']}.safetensors")
