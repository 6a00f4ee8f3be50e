"""`decide`: what a policy answers, unless its weights no longer compute anything."""

from __future__ import annotations

from collections.abc import Sequence

from vla_rl.errors import RunError
from vla_rl.types import ActionChunk, Actor, Observation


def decide(policy: Actor, observation: Observation, seed_N: Sequence[int], temperature: float) -> ActionChunk:
    """`policy.act`.

    Raises:
        RunError: a command or a log-probability is NaN or infinite. The log-probability tells where the command does
            not: of NaN logits the most probable token is a token like any other.
    """
    chunk = policy.act(observation, seed_N, temperature)
    if chunk.command_NLA.isfinite().all() and chunk.logprob_NLA.isfinite().all():
        return chunk
    raise RunError(
        "the policy's answer holds NaN or infinity: its weights have diverged (a smaller optim.lr in a new run_dir, or "
        "policy.checkpoint=FOLDER of an earlier one), or are too large for policy.dtype"
    )
