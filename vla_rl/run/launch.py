"""Who starts the processes of a run: torchrun, srun, the user, or Lightning itself; and what they leave in a shell.

Lightning reads ranks from environment variables. One that is left over from another program makes a process wait for
others that nobody starts, or takes it for a rank that writes no files. Only light imports here.
"""

from __future__ import annotations

import os

from vla_rl.errors import UserError

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE")
ALONE = {"RANK": "0", "NODE_RANK": "0", "GROUP_RANK": "0", "WORLD_SIZE": "1"}  # as of one process, which may stay
OTHERS = ("LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_NTASKS")


def check_rank_variables(*, by_lightning: bool) -> None:
    """Raise UserError for the rank variables of a process that nothing has started as a rank; empty ones are removed.

    Args:
        by_lightning: another rank of the run has started this one.
    """
    for name in (*RANKS, *OTHERS):
        if os.environ.get(name) == "":
            del os.environ[name]
    if by_lightning or launcher() is not None:
        return
    left = [f"{name}={os.environ[name]}" for name in RANKS if os.environ.get(name) not in (None, ALONE.get(name))]
    if left:
        names = " ".join(item.partition("=")[0] for item in left)
        raise UserError(
            f"{', '.join(left)} in the environment makes this one process of several, but neither torchrun nor srun "
            f"has started it: unset {names}"
        )


def launcher() -> str | None:
    """What has started this process as one of several: torchrun, srun, or `you` with Lightning's own variables."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    # Lightning takes a job of these names for a shell in which SLURM starts no ranks
    if "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return "srun"
    if "MASTER_ADDR" in os.environ and {"NODE_RANK", "LOCAL_RANK"} & os.environ.keys():
        return "you"
    return None


def started_processes() -> int | None:
    """How many processes the launcher has started, by its variables; None: there is none, or it does not say."""
    name = {"torchrun": "WORLD_SIZE", "srun": "SLURM_NTASKS", "you": "WORLD_SIZE", None: ""}[launcher()]
    return int(os.environ[name]) if name in os.environ else None


def check_world(devices: int, nodes: int) -> None:
    """Raise UserError where another number of processes was started than the config asks for.

    Args:
        devices, nodes: processes of a node, and nodes (`trainer.devices`, `trainer.num_nodes`).
    """
    started = started_processes()
    if started is None or started == devices * nodes:
        return
    by = launcher()
    source = {"torchrun": "torchrun has started {} (WORLD_SIZE)", "srun": "SLURM has {} (SLURM_NTASKS)"}
    said = source.get(str(by), "the environment has {} (WORLD_SIZE)").format(_processes(started))
    again = {"torchrun": f"torchrun --nproc-per-node {devices}", "srun": f"srun --ntasks={devices * nodes}"}
    fixes = [again.get(str(by), "unset WORLD_SIZE"), f"trainer.devices={max(1, started // nodes)}"]
    if by == "srun":
        fixes.append("without srun: unset SLURM_NTASKS")
    raise UserError(
        f"{said}, but trainer.devices={devices} on trainer.num_nodes={nodes} asks for {devices * nodes}: "
        f"{', or '.join(fixes)}"
    )


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"
