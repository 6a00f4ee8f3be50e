"""`python -m vla_rl.export checkpoint=runs/mine/checkpoints/best.ckpt out=FOLDER`: a policy to load or to publish.

    checkpoint=RUN/checkpoints/X.ckpt  the policy of any checkpoint of a run, as `policy.checkpoint=` or, of adapters,
                                       `policy.adapter=` reads it; that of the last checkpoint is in RUN/policy already
    checkpoint=BASE adapter=FOLDER     the adapters (PEFT's format) merged into the checkpoint they were trained on: a
                                       whole policy in the published layout. BASE is a folder, shipped:NAME or a hub
                                       name, and is only read
    out=FOLDER                         folder to write; must not exist

What is merged loads wherever its base did: policy.checkpoint=FOLDER policy.lora=null
"""

from __future__ import annotations

from vla_rl.run.cli import answer_early, run_entry

if __name__ == "__main__":
    answer_early(__doc__, parse=None)  # before the imports below, which take seconds

from pathlib import Path

import torch

from vla_rl.config.compose import compose, only_options
from vla_rl.config.instantiate import build
from vla_rl.config.schema import ExportConfig
from vla_rl.errors import UserError
from vla_rl.policy import save_trained
from vla_rl.policy.hub import resolve_checkpoint
from vla_rl.policy.openvla_oft.merge import merge_adapter
from vla_rl.run.resume import find_damage


def main(argv: list[str]) -> None:
    options = only_options(ExportConfig, argv)
    if not options.checkpoint or not options.out:
        missing = "out" if options.checkpoint else "checkpoint"
        raise UserError(f"missing {missing}=: checkpoint=runs/mine/checkpoints/best.ckpt out=exported")
    out = Path(options.out)
    if options.adapter is None:
        export_policy(Path(options.checkpoint), out)
        print(f"policy {out}")
    else:
        changed = merge_adapter(resolve_checkpoint(options.checkpoint), Path(options.adapter), out)
        print(f"policy {out}: {len(changed)} tensors merged")


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
        raise UserError(
            f"checkpoint {checkpoint} cannot be read ({damage}); give one of a run's checkpoints/*.ckpt, or a base "
            "with the adapter to merge: adapter=runs/mine/policy"
        )
    if not config_path.is_file():
        raise UserError(f"{checkpoint} is in no run: missing {config_path}; give one of a run's checkpoints/*.ckpt")
    if out.exists():
        raise UserError(f"out={out} exists; give a new folder: out={out}-2")
    node = compose([f"conf={config_path}"]).policy or {}
    if "checkpoint" in node and not node.get("lora"):
        node = node | {"checkpoint": str(run / "policy")}
    policy = build(node, "policy")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    own = {name: tensor for name, tensor in state.items() if name.startswith("policy.")}  # a critic has its head there
    tensors = {name.removeprefix("policy."): tensor for name, tensor in own.items()}
    unexpected = policy.load_state_dict(tensors, strict=False).unexpected_keys
    assert not unexpected, unexpected
    save_trained(policy, out)


if __name__ == "__main__":
    run_entry(main)
