"""LoRA (arXiv 2106.09685) through PEFT, on named target modules, saved in PEFT's own format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vla_rl.policy.openvla_oft.llama import RowsLinear
from vla_rl.policy.openvla_oft.model import OpenVLAOFT

# Named, because PEFT's "all-linear" means different modules in different versions.
TARGETS = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
    *("fc1", "fc2", "fc3", "qkv", "proj"),
)
ADAPTER = "default"
PREFIX = "base_model.model."  # of every name in PEFT's files


def check_lora(lora: Any) -> None:
    """Raise ValueError unless `lora` has `r` and `alpha`, at most `targets` besides, of types that can be."""
    fix = "policy.lora={r: 32, alpha: 32}"
    if not isinstance(lora, dict) or not {"r", "alpha"} <= lora.keys() <= {"r", "alpha", "targets"}:
        raise ValueError(f"policy.lora takes r and alpha, and targets if need be; got {lora!r}: {fix}")
    for name, least in (("r", 1), ("alpha", 0)):
        value = lora[name]
        if isinstance(value, bool) or not isinstance(value, int if name == "r" else int | float) or value < least:
            raise ValueError(f"policy.lora.{name} must be a number of at least {least}, got {value!r}: {fix}")
    targets = lora.get("targets", TARGETS)
    if isinstance(targets, str) or not targets:
        raise ValueError(f"policy.lora.targets must be a list of layer names, got {targets!r}: known {_names(TARGETS)}")


def add_lora(model: OpenVLAOFT, r: int, alpha: float, targets: Sequence[str] = TARGETS) -> None:
    """Freeze the model and put adapters of rank `r` on every linear layer that is named in `targets`, in place.

    Adapters are float32. A target is the end of a layer's name: `fc1`, or `projector.fc1` for that one alone.

    Raises:
        ValueError: a target that names no linear layer.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise ValueError(f"no linear layer named {target!r} in the model; known: {_names(TARGETS)}")
    config = peft.LoraConfig(r=r, lora_alpha=alpha, target_modules=_pattern(targets), lora_dropout=0.0, bias="none")
    peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    _compute_action_rows_only(model)
    for parameter in model.parameters():
        if parameter.requires_grad:  # in bfloat16 a step of 1e-5 would be rounded away
            parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False  # the policy computes under autocast


def save_adapter(model: OpenVLAOFT, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`; `peft.PeftModel.from_pretrained` reads them too.

    Args:
        state: the model's state dict, where its own tensors are shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.peft_config[ADAPTER].save_pretrained(str(folder))
    state = peft.get_peft_model_state_dict(model, state, adapter_name=ADAPTER, save_embedding_layers=False)
    save_file({PREFIX + k: v.contiguous().cpu() for k, v in state.items()}, folder / "adapter_model.safetensors")


def load_adapter(model: OpenVLAOFT, folder: Path) -> None:
    """Fill the adapters of `model` (see `add_lora`) from a folder in PEFT's format.

    Raises:
        ValueError: no adapter there, or tensors that do not fit the model's adapters.
    """
    path = folder / "adapter_model.safetensors"
    if not path.exists():
        raise ValueError(f"no adapter in {folder}: expected adapter_model.safetensors (policy.adapter=FOLDER)")
    stored = {name.removeprefix(PREFIX): value for name, value in load_file(path).items()}
    wanted = peft.get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    odd = sorted(set(stored) ^ set(wanted)) or [k for k in stored if stored[k].shape != wanted[k].shape]
    if odd:
        raise ValueError(
            f"adapter {folder} does not fit the model's LoRA: {odd[0]}; set policy.lora to the adapter's r and targets"
        )
    with torch.no_grad():
        peft.set_peft_model_state_dict(model, stored, adapter_name=ADAPTER)


def _names(targets: Sequence[str]) -> str:
    """As an override, `policy.lora.targets=[q_proj,...]`."""
    return f"policy.lora.targets=[{','.join(targets)}]"


def _pattern(targets: Sequence[str]) -> str:
    """Whole names from a dot on; the patch embedding's `proj` is a convolution that is never called as a module,
    and the proprioception's projector is a file of its own in the L1 variant: as released, it is not adapted."""
    return rf"(?!.*(patch_embed|proprio_projector))(.*\.)?({'|'.join(map(re.escape, targets))})"


def _compute_action_rows_only(model: OpenVLAOFT) -> None:
    """The output head computes its action rows only, so its adapter's second factor has to as well."""
    head = model.language_model.lm_head
    if isinstance(head, RowsLinear):
        return  # not among the targets
    rows, full = head.get_base_layer(), head.lora_B[ADAPTER]
    with torch.device("meta"):
        up = RowsLinear(full.in_features, full.out_features, rows.start, rows.stop)
    up.weight = full.weight
    head.lora_B[ADAPTER] = up
