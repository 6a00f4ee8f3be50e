"""`python -m vla_rl.export checkpoint=runs/mine/checkpoints/best.ckpt out=FOLDER`: a policy to load or to publish.

    checkpoint=RUN/checkpoints/X.ckpt  the policy of any checkpoint of a run, as `policy.checkpoint=` or, of adapters,
                                       `policy.adapter=` reads it; that of the last checkpoint is in RUN/policy already
    checkpoint=BASE adapter=FOLDER     the adapters (PEFT's format) merged into the checkpoint they were trained on: a
                                       whole policy in the published layout. BASE is a folder, shipped:NAME or a hub
                                       name, and is only read
    out=FOLDER                         folder to write; must not exist
    push=OWNER/NAME                    upload the policy to the Hugging Face hub, with a model card made from the run;
                                       the token is the environment's (HF_TOKEN). Nothing is uploaded without it
    private=false                      a new repository there can be seen by everybody; default: true
    dry_run=true                       only say what would be uploaded

What is merged loads wherever its base did: policy.checkpoint=FOLDER policy.lora=null
"""

from __future__ import annotations

from vla_rl.config.compose import compose, only_options
from vla_rl.config.schema import ExportConfig
from vla_rl.run.cli import answer_early, run_entry

if __name__ == "__main__":  # before the imports below, which take seconds
    answer_early(__doc__, parse=lambda argv: only_options(ExportConfig, argv), confs=False)

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vla_rl.checks import check_flag, check_new_folder
from vla_rl.config.instantiate import build
from vla_rl.errors import UserError
from vla_rl.policy import save_trained
from vla_rl.policy.hub import check_repository, resolve_checkpoint, upload
from vla_rl.policy.openvla_oft.merge import merge_adapter
from vla_rl.policy.weights import fill_trained, part
from vla_rl.run.model_card import write_model_card
from vla_rl.run.resume import find_damage


def main(argv: list[str]) -> None:
    options = only_options(ExportConfig, argv)
    check_options(options)
    with TemporaryDirectory() as temporary:
        out = Path(options.out or Path(temporary) / "policy")
        if options.adapter is None:
            export_policy(Path(str(options.checkpoint)), out)
            said = f"policy {out}"
        else:
            changed = merge_adapter(resolve_checkpoint(str(options.checkpoint)), Path(options.adapter), out)
            said = f"policy {out}: {len(changed)} tensors merged"
        if options.out:
            print(said)
        if options.push:
            publish(out, options)


def check_options(options: ExportConfig) -> None:
    """Raise UserError where an option is missing or has no use, or `out` cannot be written: before the work."""
    if not options.checkpoint or not (options.out or options.push):
        missing = "out" if options.checkpoint else "checkpoint"
        raise UserError(f"missing {missing}=: checkpoint=runs/mine/checkpoints/best.ckpt out=exported")
    if options.out:
        check_new_folder("out", Path(options.out), "exported")
    check_flag("private", options.private)
    check_flag("dry_run", options.dry_run)
    if options.push:
        check_repository(options.push)
        if not (config := run_of(options) / "config.yaml").is_file():
            raise UserError(f"the model card is made from the run, and there is none: missing {config}; give a "
                            "checkpoint or an adapter inside its run's folder, or push=null")  # fmt: skip
    elif options.dry_run or not options.private:
        option = "dry_run=false" if options.dry_run else "private=true"
        raise UserError(f"nothing is uploaded without push=OWNER/NAME: {option}")


def run_of(options: ExportConfig) -> Path:
    """The folder of the run: RUN/checkpoints/X.ckpt, or with an adapter RUN/policy."""
    assert options.checkpoint is not None
    return Path(options.adapter).parent if options.adapter else Path(options.checkpoint).parent.parent


def publish(folder: Path, options: ExportConfig) -> None:
    """Upload the policy with its model card, or in a dry run print both's names and the card."""
    assert options.push is not None and options.checkpoint is not None
    write_model_card(folder, run_of(options), options.push, Path(options.adapter or options.checkpoint).name)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    visible = "private" if options.private else "public"
    if not options.dry_run:
        print(f"uploaded {len(files)} files to {upload(folder, options.push, private=options.private)}")
        return
    print(f"dry run: would be uploaded to {options.push} ({visible} if it is new):")
    for file in files:
        print(f"  {file.stat().st_size / 1e6:10.3f} MB  {file.relative_to(folder)}")
    print((folder / "README.md").read_text(encoding="utf-8"), end="")


def export_policy(checkpoint: Path, out: Path) -> None:
    """Build the run's policy, give it the checkpoint's tensors (those that were trained) and save it in `out`.

    A policy without adapters is built from the run's `policy/`, which has what a checkpoint has not: the statistics
    that supervised training took from its demonstrations, and tensors that were not trained.

    Raises:
        UserError: no whole checkpoint, or not in a run's folder.
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
    node = compose([f"conf={config_path}"]).policy or {}
    if "checkpoint" in node and not node.get("lora"):
        node = node | {"checkpoint": str(run / "policy")}
    policy = build(node, "policy")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    fill_trained(policy, part(state, "policy."), checkpoint)  # a critic has its head there, too
    save_trained(policy, out)


if __name__ == "__main__":
    run_entry(main)
