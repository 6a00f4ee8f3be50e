"""Write a checkpoint of random weights, with the 7B policy's widths and some of its layers, in the published layout.

    python tools/write_random_checkpoint.py FOLDER --layers 2

What loads, acts and trains with it does so with the whole model, on a machine that has no room for 32 layers. The
weights are bfloat16; an instruction is one token per word, and actions are normalised as the shipped policy's are.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from vla_rl.checkpoints.shipped import FOLDER
from vla_rl.checks import check_count
from vla_rl.errors import UserError
from vla_rl.policy import save_trained
from vla_rl.policy.openvla_oft.actions import STATISTICS
from vla_rl.policy.openvla_oft.config import PUBLISHED_7B
from vla_rl.policy.openvla_oft.tiny import random_policy_7b
from vla_rl.run.cli import run_entry

NORMALISED_AS = FOLDER / "object_tiny" / STATISTICS


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new or empty")
    parser.add_argument("--layers", type=int, default=2, help="of Llama, 1 to 32")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    args = parser.parse_args(argv)
    check_count("--layers", args.layers, 2, most=32)
    if args.folder.exists() and any(args.folder.iterdir()):
        raise UserError(f"{args.folder} is not empty: name a new folder")
    write(args.folder, args.layers, args.seed)
    size = sum(file.stat().st_size for file in args.folder.iterdir())
    print(f"{args.folder}: {args.layers} layers, {size / 1e9:.2f} GB")


def write(folder: Path, layers: int, seed: int, sizes: dict[str, Any] = PUBLISHED_7B) -> None:
    """Write the checkpoint.

    Args:
        sizes: the content of a `config.json`, but for the number of layers.
    """
    text = sizes["text_config"] | {"num_hidden_layers": layers}
    policy = random_policy_7b(torch.bfloat16, seed, sizes | {"text_config": text})
    policy.take_normalisation("libero_object", str(NORMALISED_AS))
    save_trained(policy, folder)


if __name__ == "__main__":
    run_entry(main)
