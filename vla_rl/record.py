"""`python -m vla_rl.record out=demos.npz tasks=[0,5]`: what the scripted demonstrator or a policy does, for vla_rl.sft.

    out=demos.npz         this project's own file; out=demos, without a suffix: the folder of a LeRobotDataset v3
    successes_only=false  a LeRobotDataset also takes failures, marked as such; default: true
    init_states=[0,40]    half-open range, of each task; with placement noise, of the seeds of placements
    episodes_per_task=12  how many of the initial states, from the first; default: all
    seed=1                of noise and hesitation, or of a policy's sampling

The scripted demonstrator:

    check=true            only measure success; renders and records nothing (instead of out=)
    suite=object          LIBERO-Object; or of Meta-World: mt50, mt10, easy, medium, hard, very_hard
    tasks=[0,5]           default: all of the suite; Meta-World's also by name, tasks=[reach,door-open]
    noise=0.1             DART: standard deviation added to the executed xyz command
    hesitation=0.6        probability of a slow step: slack that training can remove
    placement_noise_m=0.02  objects are placed in a disc of this radius
    linger_steps=6        control steps recorded after success
    horizon=100           control steps after which a demonstration has failed; default: the suite's
    assets=standin        or hub, or a folder with LIBERO's assets; camera_px=128; workers=2 processes

A policy, wherever a conf or a checkpoint is given:

    checkpoint=FOLDER     a folder, an adapter's folder, shipped:NAME or a hub name; default: the conf's policy
    conf=pcm_object_tiny  whose policy and simulator are used (the default); sim.tasks=[0,5], sim=libero_goal, ...
    decoding=greedy       default: sampled at the conf's rollout.temperature

Prints the success rate of every task, and the same as one line of JSON at the end.
"""

from __future__ import annotations

from vla_rl.config.arguments import record_arguments
from vla_rl.run.cli import answer_early, run_entry

if __name__ == "__main__":
    answer_early(__doc__, parse=lambda argv: record_arguments(argv)[1])  # before the imports below, which take seconds

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vla_rl.checks import check_count, check_flag, check_number
from vla_rl.config.instantiate import check
from vla_rl.config.schema import Config, RecordConfig
from vla_rl.demos.demo import Demo
from vla_rl.demos.save import DemoWriter, check_out, is_npz, open_writer
from vla_rl.errors import UserError
from vla_rl.evaluation.experts import play_experts
from vla_rl.evaluation.playing import play_policy
from vla_rl.run.provenance import versions
from vla_rl.sim.maniskill import tasks as maniskill
from vla_rl.sim.metaworld import tasks as metaworld

# name and control steps per second: of Meta-World, and of LIBERO and ManiSkill
ROBOTS = {True: ("sawyer", 80), False: ("panda", 20)}


def main(argv: list[str]) -> None:
    options, config = record_arguments(argv)
    if config:
        check(config)
    check_options(options)
    record(options, config)


def record(options: RecordConfig, config: Config | None = None) -> None:
    """Play the episodes and write them; with a config, its policy plays, otherwise the scripted demonstrator."""
    suite = str((config.sim or {}).get("suite")) if config else options.suite
    robot, fps = ROBOTS[suite in metaworld.SUITES]
    about: dict[str, Any] = {"versions": versions(), "options": asdict(options)}
    if config:
        about |= {"policy": config.policy, "sim": config.sim, "temperature": config.rollout.temperature}
    table: dict[int, dict[str, Any]] = {}
    saved, steps = 0, 0
    output: AbstractContextManager[DemoWriter | None] = nullcontext()
    if options.out:
        output = open_writer(Path(options.out), fps=fps, robot=robot, about=about)
    with output as writer:

        def take(demo: Demo) -> None:
            nonlocal saved, steps
            count(table, demo, 0 if config else options.linger_steps)
            if writer and (demo.success or not options.successes_only):
                writer.add(demo)
                saved, steps = saved + 1, steps + len(demo)

        if config:
            play_policy(config, options, take)
        else:
            play_experts(options, take)
        for row in table.values():
            row["mean_steps"] = round(row["mean_steps"] / row["successes"], 1) if row["successes"] else None
        for task, row in table.items():
            print(f"task {task}: {row['successes']} of {row['episodes']} succeed, {row['mean_steps']} steps on average")
    if options.out:
        print(f"{saved} demonstrations, {steps} control steps: {options.out}")
    print(json.dumps({"suite": suite, "noise": options.noise, "tasks": table}))


def count(table: dict[int, dict[str, Any]], demo: Demo, linger_steps: int) -> None:
    """Add an episode to its task's row; `mean_steps` is the sum so far."""
    assert demo.task is not None
    row = table.setdefault(demo.task, {"episodes": 0, "successes": 0, "failed_init_states": [], "mean_steps": 0})
    row["episodes"] += 1
    if demo.success:
        row["successes"] += 1
        row["mean_steps"] += len(demo) - linger_steps
    else:
        row["failed_init_states"].append(demo.init_state)


def check_options(options: RecordConfig) -> None:
    """Raise UserError for what would fail, or mean nothing, after the first episodes; makes the folder of `out`."""
    default = RecordConfig()
    for name, least in (("workers", 1), ("camera_px", 1), ("linger_steps", 0), ("seed", 0)):
        check_count(name, getattr(options, name), getattr(default, name), least=least)
    for name, most in (("noise", None), ("placement_noise_m", None), ("hesitation", 1)):
        check_number(name, getattr(options, name), 0.1, least=0, most=most)
    check_flag("successes_only", options.successes_only)
    if options.horizon is not None:
        check_count("horizon", options.horizon, 100)
    if options.suite == maniskill.SUITE:
        raise UserError(
            "ManiSkill has no scripted demonstrator here (its own need mplib, which fails with numpy 2); a policy can "
            "be recorded: checkpoint=FOLDER sim=maniskill"
        )
    if options.suite in metaworld.SUITES:
        metaworld.check_installed()
        for name in ("placement_noise_m", "assets"):
            if getattr(options, name) != getattr(default, name):
                raise UserError(f"{name} is of LIBERO, not of Meta-World: {name}={getattr(default, name)}")
    if options.out is None:
        return
    out = Path(options.out)
    check_out(out)
    if is_npz(out) and not options.successes_only:
        raise UserError("an .npz file holds successes alone: successes_only=true, or a LeRobotDataset, out=demos")


if __name__ == "__main__":
    run_entry(main)
