"""A checkpoint is a folder in the published layout; this reads it (`files.save_checkpoint` writes one).

    config.json  preprocessor_config.json  dataset_statistics.json  tokenizer.json
    model.safetensors, or model-0000i-of-0000n.safetensors with model.safetensors.index.json

Other .json files and tokenizer.model are kept for export.

Every tensor is accounted for: one that is missing, not expected, or of another shape is an error that names it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vla_rl.checks import check_choice
from vla_rl.errors import UserError
from vla_rl.files import read_json, read_text
from vla_rl.policy import adapter as adapter_files
from vla_rl.policy.entries import check_object
from vla_rl.policy.hub import resolve_checkpoint, what_it_is
from vla_rl.policy.openvla_oft.action_head import HEAD_FILE, PROPRIO, PROPRIO_FILE, L1Head, read_head
from vla_rl.policy.openvla_oft.actions import STATISTICS, Statistics
from vla_rl.policy.openvla_oft.config import OpenVLAConfig, parse_config
from vla_rl.policy.openvla_oft.files import PREPROCESSOR, TOKENIZER, CheckpointFiles
from vla_rl.policy.openvla_oft.l1_policy import SCALE_FILE, L1Policy
from vla_rl.policy.openvla_oft.llama import check_bidirectional
from vla_rl.policy.openvla_oft.model import OpenVLAOFT
from vla_rl.policy.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policy.openvla_oft.vision import unused_shapes
from vla_rl.policy.weights import INDEX, check_tensors, read_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ACTION_HEADS = ("tokens", "l1")
PROCESSOR = "processor_config.json"  # of transformers 5, which writes the preprocessor's entries into it
SENTENCEPIECE = "tokenizer.model"
FILM_FILE = "vision_backbone--*_checkpoint.pt"  # vision towers of a checkpoint that was trained with FiLM
LAYOUT = "a checkpoint is a folder in the published layout (policy.checkpoint=FOLDER)"


def load_pretrained(
    checkpoint: str | Path, *, dtype: str = "float32", unnorm_key: str | None = None, action_head: str = "tokens"
) -> OpenVLAOFTPolicy:
    """The policy of a published or saved checkpoint, on the CPU, all weights trainable. Remote code is never executed.

    Tensors the model never runs (last vision blocks, final norms, attention pool) are checked too and kept for export.

    Args:
        checkpoint: a folder, `shipped:NAME`, or the name of a repository on the Hugging Face hub.
        dtype: "float32" or "bfloat16".
        unnorm_key: dataset whose statistics normalise actions, itself or with `_no_noops`; None takes the only one.
        action_head: "tokens", or "l1" for a checkpoint with an L1 head (`L1Policy`).

    Raises:
        UserError: no such checkpoint, or one that does not fit; what is wrong and how to fix it.
        RuntimeError: attention does not look ahead on this machine.

    Example:
        >>> policy = load_pretrained("Haozhan72/Openvla-oft-SFT-libero-object-traj1", dtype="bfloat16")
    """
    check_choice("policy.dtype", dtype, DTYPES)
    check_choice("policy.action_head", action_head, ACTION_HEADS)
    folder, l1 = resolve_checkpoint(str(checkpoint)), action_head == "l1"
    config, files = _read_files(folder, l1)
    model = _without_weights(config, DTYPES[dtype])
    tensors = read_tensors(folder, _expected_shapes(model, l1), DTYPES[dtype])
    files.unused = {name: tensors.pop(name) for name in unused_shapes(config.towers)}
    model.load_state_dict(tensors, assign=True, strict=not l1)  # every name has been checked
    statistics = _statistics(folder, files, unnorm_key, config.proprio_dims)
    head = _head(config, statistics, DTYPES[dtype])
    if l1:
        files.heads = {"head": read_head(folder, HEAD_FILE, head)}
        files.heads[PROPRIO] = read_head(folder, PROPRIO_FILE, model.proprio_projector)
    model.requires_grad_(True)
    policy = L1Policy(model, files, statistics, head) if l1 else OpenVLAOFTPolicy(model, files, statistics)
    check_bidirectional(model.language_model.model)
    if isinstance(policy, L1Policy) and (folder / SCALE_FILE).exists():  # of a checkpoint this project has trained
        policy.load_scale(folder)
    return policy


def inspect_checkpoint(
    checkpoint: str,
    *,
    unnorm_key: str | None = None,
    action_head: str = "tokens",
    lora: dict[str, Any] | None = None,
    adapter: str | None = None,
) -> int:
    """Raise what `load_policy` would raise about the files of a checkpoint and of adapters.

    Every tensor is read once, one at a time, so little memory is needed.

    Returns:
        How many tensors the weight files hold.

    Raises:
        UserError: see `load_pretrained`, and `vla_rl.policy.lora.load_adapter`.
    """
    check_choice("policy.action_head", action_head, ACTION_HEADS)
    folder, l1 = resolve_checkpoint(checkpoint), action_head == "l1"
    config, files = _read_files(folder, l1)
    model = _without_weights(config, torch.float32)
    expected = _expected_shapes(model, l1)
    check_tensors(folder, expected)
    statistics = _statistics(folder, files, unnorm_key, config.proprio_dims)
    OpenVLAOFTPolicy(model, files, statistics)  # reads the tokenizer and the constants of normalisation
    if l1:
        read_head(folder, HEAD_FILE, _head(config, statistics, torch.float32))
        read_head(folder, PROPRIO_FILE, model.proprio_projector)
    if lora is not None and adapter is not None:
        from vla_rl.policy.lora import L1_TARGETS, add_lora, fitting_tensors  # here: peft takes seconds to import

        add_lora(model, **({"targets": L1_TARGETS} if l1 else {}) | lora)
        fitting_tensors(model, adapter_files.read_adapter(Path(adapter).expanduser()))
    return len(expected)


def _without_weights(config: OpenVLAConfig, dtype: torch.dtype) -> OpenVLAOFT:
    with torch.device("meta"):
        return OpenVLAOFT(config).to(dtype)


def _head(config: OpenVLAConfig, statistics: Statistics, dtype: torch.dtype) -> L1Head:
    """Of an L1 checkpoint, without its weights: for as many numbers as its statistics describe."""
    with torch.device("meta"):
        return L1Head(config.llama.width, statistics.action_dims).to(dtype)


def _expected_shapes(model: OpenVLAOFT, l1: bool) -> dict[str, torch.Size]:
    """Of every tensor in the weight files, those the model never runs included."""
    apart = {f"{PROPRIO}.{name}" for name in model.proprio_projector.state_dict()} if l1 else set()
    run = {name: value.shape for name, value in model.state_dict().items() if name not in apart}
    return run | unused_shapes(model.config.towers)


def _statistics(folder: Path, files: CheckpointFiles, unnorm_key: str | None, proprio_dims: int) -> Statistics:
    path, source = folder / STATISTICS, STATISTICS
    if path.exists():
        content = read_json(path)
    else:
        content = files.config.get("norm_stats") or {}
        if content:
            source = "config.json: norm_stats"
    return Statistics.select(check_object(content, source), unnorm_key, proprio_dims=proprio_dims, source=source)


def read_config(folder: Path, *, l1_head: bool = False) -> tuple[OpenVLAConfig, dict[str, Any]]:
    """The sizes of a checkpoint's model, and the whole content of its `config.json`.

    Raises:
        UserError: there is none, because the folder is something else, or it does not fit.
    """
    if not (folder / "config.json").exists():
        raise UserError(f"checkpoint {folder} has no config.json{what_it_is(folder, LAYOUT)}")
    raw = read_json(folder / "config.json")
    return parse_config(raw, l1_head=l1_head), raw


def _read_files(folder: Path, l1: bool) -> tuple[OpenVLAConfig, CheckpointFiles]:
    """The sizes, and everything in a checkpoint but its tensors."""
    config, raw = read_config(folder, l1_head=l1)
    heads = sorted(folder.glob(HEAD_FILE))
    if heads and not l1:
        raise UserError(
            f"checkpoint {folder} predicts actions with an L1 head ({heads[0].name}), not with action tokens: "
            "policy.action_head=l1 sim.wrist_camera=true"
        )
    film = sorted(folder.glob(FILM_FILE))
    if film:
        raise UserError(
            f"checkpoint {folder} has vision towers with FiLM ({film[0].name}), which are not supported: "
            "take a checkpoint that was trained without FiLM, or move a file that does not belong to it away"
        )
    written = ("config.json", PREPROCESSOR, STATISTICS, TOKENIZER, INDEX)
    files = CheckpointFiles(
        config=raw,
        preprocessor=_read_preprocessor(folder),
        tokenizer=_read_tokenizer(folder),
        unused={},
        others={f.name: f.read_bytes() for f in _small_files(folder) if f.name not in written},
    )
    return config, files


def _read_preprocessor(folder: Path) -> dict[str, Any]:
    if (folder / PREPROCESSOR).exists():
        return read_json(folder / PREPROCESSOR)
    if not (folder / PROCESSOR).exists():
        raise UserError(f"checkpoint {folder} has no {PREPROCESSOR}: copy it from the checkpoint it was trained from")
    return check_object(read_json(folder / PROCESSOR).get("image_processor"), f"{folder / PROCESSOR}: image_processor")


def _read_tokenizer(folder: Path) -> str:
    if (folder / TOKENIZER).exists():
        return read_text(folder / TOKENIZER)
    fix = "copy it from the checkpoint it was trained from"
    if (folder / SENTENCEPIECE).exists():
        fix = (
            f"make it of {SENTENCEPIECE} with transformers, "
            f"LlamaTokenizerFast.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    raise UserError(f"checkpoint {folder} has no {TOKENIZER}: {fix}")


def _small_files(folder: Path) -> list[Path]:
    """Tokenizer and generation settings of other programs: never read here, but part of a published checkpoint."""
    return sorted(file for pattern in ("*.json", SENTENCEPIECE) for file in folder.glob(pattern))
