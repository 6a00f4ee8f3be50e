"""LoRA (arXiv 2106.09685) through PEFT, on named target modules, saved in PEFT's own format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from vla_rl.checks import check_count, check_number
from vla_rl.errors import UserError
from vla_rl.policy.adapter import FACTORS, PREFIX, TENSORS, Adapter, read_adapter
from vla_rl.policy.openvla_oft.llama import RowsLinear
from vla_rl.policy.weights import save_tensors

# Named, because PEFT's "all-linear" means different modules in different versions.
TARGETS = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
    *("fc1", "fc2", "fc3", "qkv", "proj"),
)
L1_TARGETS = tuple(target for target in TARGETS if target != "lm_head")  # an L1 head does not read the output head
ADAPTER = "default"


def check_lora(lora: Any) -> None:
    """Check types: `lora` has `r`, `alpha` and, if need be, `targets`, and nothing else.

    Raises:
        UserError: it does not; the message has an override that works.
    """
    fix = "policy.lora={r: 32, alpha: 32}"
    if not isinstance(lora, dict) or not {"r", "alpha"} <= lora.keys() <= {"r", "alpha", "targets"}:
        raise UserError(f"policy.lora takes r and alpha, and targets if need be; got {lora!r}: {fix}")
    r, alpha = lora["r"], lora["alpha"]
    check_count("policy.lora.r", r, 32)
    check_number("policy.lora.alpha", alpha, 32, above=0)
    targets = lora.get("targets", TARGETS)
    is_list = isinstance(targets, Sequence) and not isinstance(targets, str)
    if not is_list or not targets or not all(isinstance(target, str) for target in targets):
        raise UserError(f"policy.lora.targets must be a list of layer names, got {targets!r}: known {_names(TARGETS)}")


def add_lora(
    model: nn.Module, r: int, alpha: float, targets: Sequence[str] = TARGETS, *, autocast: bool = True
) -> None:
    """Freeze the model and put adapters of rank `r` on every linear layer that is named in `targets`, in place.

    Adapters are float32. A target is the end of a layer's name: `fc1`, or `projector.fc1` for that one alone.

    Args:
        autocast: the policy computes under autocast; else each adapter casts its input and its output.

    Raises:
        UserError: a target that names no linear layer.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise UserError(f"no linear layer named {target!r} in the model; known: {_names(TARGETS)}")
    config = peft.LoraConfig(
        r=r, lora_alpha=cast(int, alpha), target_modules=_pattern(targets), lora_dropout=0.0, bias="none"
    )
    peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    _compute_read_rows_only(model)
    for parameter in model.parameters():
        if parameter.requires_grad:  # in bfloat16 a step of 1e-5 would be rounded away
            parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = not autocast


def _config(model: nn.Module) -> peft.LoraConfig:
    """What `add_lora` injected; PEFT leaves it on the model."""
    return cast(Any, model).peft_config[ADAPTER]


def save_adapter(model: nn.Module, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`; `peft.PeftModel.from_pretrained` reads them too.

    Args:
        state: the model's state dict, where its own tensors are shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _config(model).save_pretrained(str(folder))
    state = peft.get_peft_model_state_dict(model, state, adapter_name=ADAPTER, save_embedding_layers=False)
    save_tensors({PREFIX + k: v.cpu() for k, v in state.items()}, folder / TENSORS)


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Fill the adapters of `model` (see `add_lora`) from a folder in PEFT's format.

    Raises:
        UserError: no adapter there, it is not plain LoRA, or it was made with other settings than the model's.
    """
    stored = fitting_tensors(model, read_adapter(folder))
    with torch.no_grad():
        peft.set_peft_model_state_dict(model, stored, adapter_name=ADAPTER)


def fitting_tensors(model: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    """The adapters' tensors by their names in `model`. Those of layers that are never run (the towers' last blocks,
    which PEFT's "all-linear" adapts too) are left out: they change nothing.

    Raises:
        UserError: `adapter` was made with another r, alpha or targets than the model's adapters.
    """
    config = _config(model)
    if (adapter.r, adapter.alpha) != (config.r, config.lora_alpha):
        raise UserError(
            f"adapter {adapter.folder} does not fit the model's LoRA: it was made with r={adapter.r}, "
            f"alpha={adapter.alpha:g}, policy.lora has r={config.r}, alpha={config.lora_alpha}: "
            f"policy.lora.r={adapter.r} policy.lora.alpha={adapter.alpha:g}"
        )
    never_run = cast(Any, model).unused_shapes()
    stored = {
        layer + name: value
        for layer, factors in adapter.factors.items()
        if f"{layer}.weight" not in never_run
        for name, value in zip(FACTORS, factors, strict=True)
    }
    wanted = peft.get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    odd = sorted(stored.keys() ^ wanted.keys())
    if odd:
        whose = "the adapter has" if odd[0] in stored else "the adapter lacks"
        raise UserError(
            f"adapter {adapter.folder} does not fit the model's LoRA: {whose} {odd[0]}: {_names(adapter.targets)}"
        )
    for name, value in stored.items():
        if value.shape != wanted[name].shape:
            raise UserError(
                f"adapter {adapter.folder} does not fit the checkpoint: {name} has shape {list(value.shape)}, "
                f"expected {list(wanted[name].shape)}; name the one it was trained on: policy.checkpoint=BASE"
            )
    return stored


def _names(targets: Sequence[str]) -> str:
    """As an override, `policy.lora.targets=[q_proj,...]`."""
    return f"policy.lora.targets=[{','.join(targets)}]"


def _pattern(targets: Sequence[str]) -> str:
    """Whole names from a dot on; the patch embedding's `proj` is a convolution that is never called as a module,
    and the proprioception's projector is a file of its own in the L1 variant: as released, it is not adapted."""
    return rf"(?!.*(patch_embed|proprio_projector))(.*\.)?({'|'.join(map(re.escape, targets))})"


def _compute_read_rows_only(model: nn.Module) -> None:
    """An output head that computes its action rows only needs an adapter whose second factor does, too."""
    for module in model.modules():
        rows = module.get_base_layer() if isinstance(module, LoraLayer) else None
        if isinstance(rows, RowsLinear):
            full = cast(nn.Linear, cast(LoraLayer, module).lora_B[ADAPTER])
            with torch.device("meta"):
                up = RowsLinear(full.in_features, full.out_features, rows.start, rows.stop)
            up.weight = full.weight
            cast(LoraLayer, module).lora_B[ADAPTER] = up
