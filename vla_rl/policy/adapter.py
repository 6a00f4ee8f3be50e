"""Adapters in PEFT's files, read strictly: plain LoRA, W + alpha / r B A, or an error that says what is not.

adapter_config.json  adapter_model.safetensors
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.files import read_json
from vla_rl.policy.entries import check_count, check_positive, shown
from vla_rl.policy.weights import check_finite, open_shard

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every name in PEFT's files
FACTORS = (".lora_A.weight", ".lora_B.weight")
# Entries that do not change the formula, or that are read; every other one must be empty, also those of a later PEFT.
NEUTRAL = {
    *("peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "runtime_config", "megatron_config", "megatron_core", "ensure_weight_tying"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "qalora_group_size"),
    *("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "r", "lora_alpha"),
}
EMPTY: tuple[object, ...] = (None, False, "none", "", {}, [])
INITIALISATIONS = (None, True, False, "gaussian", "orthogonal", "eva")  # the others change the weights beneath


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a folder of adapters holds. `factors`: A [r, in] and B [out, r] by the adapted layer's name."""

    folder: Path
    r: int
    alpha: float
    factors: dict[str, tuple[Tensor, Tensor]]

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    @property
    def targets(self) -> list[str]:
        """The ends of the adapted layers' names, as `policy.lora.targets` takes them."""
        return sorted({layer.rpartition(".")[2] for layer in self.factors})


def check_lora_of_adapter(adapter: str | None, lora: dict[str, Any] | None) -> None:
    """Raise UserError for an adapter without the settings it was made with."""
    if adapter is not None and lora is None:
        raise UserError("an adapter needs the LoRA settings it was made with: policy.lora={r: 32, alpha: 32}")


def read_adapter(folder: Path) -> Adapter:
    """The adapters of a folder.

    Raises:
        UserError: a file is missing or damaged, or the adapters are not plain LoRA of finite numbers.
    """
    for name in (CONFIG, TENSORS):
        if not (folder / name).exists():
            raise UserError(f"no adapter in {folder}: it has no {name} (policy.adapter=FOLDER)")
    config = read_json(folder / CONFIG)
    _check_plain(config, folder)
    r = check_count(config.get("r"), f"{folder / CONFIG}: r")
    alpha = check_positive(config.get("lora_alpha"), f"{folder / CONFIG}: lora_alpha")
    with open_shard(folder / TENSORS) as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118, not a dict
    factors = {}
    for name in tensors:
        check_finite(name, tensors[name], folder / TENSORS)
        layer = name.removeprefix(PREFIX).removesuffix(FACTORS[0]).removesuffix(FACTORS[1])
        down, up = (tensors.get(PREFIX + layer + factor) for factor in FACTORS)
        if down is None or up is None:
            raise UserError(f"adapter {folder}: tensor {name!r} is not one of a pair lora_A, lora_B")
        if down.dim() != 2 or up.dim() != 2 or down.shape[0] != r or up.shape[1] != r:
            raise UserError(
                f"adapter {folder}: factors of {layer!r} have shapes {list(down.shape)} and {list(up.shape)}, "
                f"{CONFIG} says r={r}"
            )
        factors[layer] = (down, up)
    if not factors:
        raise UserError(f"adapter {folder}: {TENSORS} holds no tensors")
    return Adapter(folder, r, alpha, factors)


def _check_plain(config: dict[str, Any], folder: Path) -> None:
    def refuse(name: str) -> None:
        raise UserError(
            f"{folder / CONFIG} is not plain LoRA ({name} is {shown(config[name])}): merge the adapter into its base "
            "with the program that trained it (PEFT: merge_and_unload), then policy.checkpoint=MERGED "
            "policy.adapter=null"
        )

    if config.get("peft_type", "LORA") != "LORA":
        refuse("peft_type")
    if config.get("init_lora_weights") not in INITIALISATIONS:
        refuse("init_lora_weights")
    for name in sorted(config.keys() - NEUTRAL):
        if config[name] not in EMPTY:
            refuse(name)
