"""Merge trained adapters into the checkpoint they were trained on, as a checkpoint in the published layout.

    python tools/merge_lora.py --checkpoint Haozhan72/Openvla-oft-SFT-libero-object-traj1 \
        --adapter runs/pcm_object/<time>/policy --out merged

The checkpoint is only read. The result loads wherever the checkpoint did: policy.checkpoint=merged policy.lora=null
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vla_rl.policy.openvla_oft.checkpoint import resolve_checkpoint
from vla_rl.policy.openvla_oft.merge import merge_adapter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder, shipped:NAME, or hub name")
    parser.add_argument("--adapter", required=True, type=Path, help="folder in PEFT's format")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; must not exist")
    args = parser.parse_args()
    changed = merge_adapter(resolve_checkpoint(args.checkpoint), args.adapter, args.out)
    print(f"{args.out}: {len(changed)} tensors merged")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
