"""`play_policy`: the episodes of `python -m vla_rl.record` with a policy, one picture per control step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import lightning as L
from tqdm import tqdm

from vla_rl.config.instantiate import build
from vla_rl.config.policy_node import policy_node
from vla_rl.config.schema import Config, RecordConfig
from vla_rl.demos.demo import Demo
from vla_rl.errors import UserError
from vla_rl.rollout.collect import collect
from vla_rl.rollout.datamodule import check_policy
from vla_rl.rollout.plan import check_init_states, heldout_episodes
from vla_rl.rollout.stepwise import StepwisePool
from vla_rl.training.trainer import make_trainer
from vla_rl.types import Episode, Policy, SimulatorPool


def play_policy(config: Config, options: RecordConfig, take: Callable[[Demo], None]) -> None:
    """Play the same episodes as `vla_rl.evaluate` does from these initial states with this seed, and hand them over in
    order.

    Raises:
        UserError: the policy does not fit the simulators, or they do not have the initial states.
    """
    config.policy = policy_node(config.policy or {}, options.checkpoint)
    trainer = make_trainer(config, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    L.seed_everything(config.seed, verbose=False)
    with closing(build(config.sim, "sim")) as pool:
        episodes = plan_episodes(pool, options)
        policy: Policy = build(config.policy, "policy").to(trainer.strategy.root_device).eval()
        check_policy(pool, policy)
        suite = str((config.sim or {}).get("suite"))
        with tqdm(total=len(episodes), unit="episode", disable=None) as bar:
            ready: dict[int, Demo] = {}
            handed_over = 0

            def on_demo(episode: Episode, demo: Demo) -> None:
                nonlocal handed_over
                ready[episode.uid] = demo
                while handed_over in ready:
                    take(ready.pop(handed_over))
                    handed_over += 1
                bar.update()

            temperature = 0.0 if options.decoding == "greedy" else config.rollout.temperature
            collect(StepwisePool(pool, suite, on_demo), policy, episodes, temperature=temperature)


def states_of_task(options: RecordConfig) -> tuple[int, int]:
    """Half-open range of the initial states that are played of each task; raises UserError where there are too few."""
    first, end = options.init_states
    wanted = end - first if options.episodes_per_task is None else options.episodes_per_task
    if not 1 <= wanted <= end - first:
        raise UserError(f"{wanted} episodes exceed init_states=[{first},{end}]: init_states=[0,{max(wanted, 1)}]")
    return first, first + wanted


def plan_episodes(pool: SimulatorPool, options: RecordConfig) -> list[Episode]:
    """Every task from each initial state asked for, tasks taking turns."""
    first, end = states_of_task(options)
    check_init_states(pool, f"init_states=[{first},{end}]", end, remedy=f"init_states=[0,{pool.init_states}]")
    return heldout_episodes(pool.tasks, (first, end), (end - first) * len(pool.tasks), options.seed)
