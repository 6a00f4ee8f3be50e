"""The policy of any checkpoint of a run, as `policy.checkpoint=` or, of adapters, `policy.adapter=` reads it.

    python tools/export_policy.py runs/mine/checkpoints/best.ckpt --out FOLDER

The one of a run's last checkpoint is in its `policy/` already.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from vla_rl.config.compose import compose
from vla_rl.config.instantiate import build
from vla_rl.errors import UserError
from vla_rl.policy import save_trained
from vla_rl.run.cli import run_entry
from vla_rl.run.resume import find_damage


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", type=Path, help="one of a run's checkpoints/*.ckpt; the run's config.yaml is read"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    args = parser.parse_args(argv)
    export_policy(args.checkpoint, args.out)
    print(f"policy {args.out}")


def export_policy(checkpoint: Path, out: Path) -> None:
    """Build the run's policy, give it the checkpoint's tensors (those that were trained) and save it in `out`.

    A policy without adapters is built from the run's `policy/`, which has what a checkpoint has not: the statistics
    that supervised training took from its demonstrations, and tensors that were not trained.

    Raises:
        UserError: no whole checkpoint, not in a run's folder, or `out` exists.
    """
    run = checkpoint.parent.parent
    config_path = run / "config.yaml"
    if damage := find_damage(checkpoint):
        raise UserError(f"checkpoint {checkpoint} cannot be read ({damage}); give one of a run's checkpoints/*.ckpt")
    if not config_path.is_file():
        raise UserError(f"{checkpoint} is in no run: missing {config_path}; give one of a run's checkpoints/*.ckpt")
    if out.exists():
        raise UserError(f"--out {out} exists; give a new folder: --out {out}-2")
    node = compose([f"conf={config_path}"]).policy
    if "checkpoint" in node and not node.get("lora"):
        node = node | {"checkpoint": str(run / "policy")}
    policy = build(node, "policy")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    tensors = {name.removeprefix("policy."): tensor for name, tensor in state.items()}
    unexpected = policy.load_state_dict(tensors, strict=False).unexpected_keys
    assert not unexpected, unexpected
    save_trained(policy, out)


if __name__ == "__main__":
    run_entry(main, __doc__)
