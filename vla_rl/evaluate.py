"""`python -m vla_rl.evaluate conf=pcm_object_tiny checkpoint=FOLDER`: success by task and overall, with a report.

    checkpoint=[A,B]      several on the same episodes, the others compared with the first (a folder, an adapter's
                          folder, a hub name); default: the conf's policy
    protocol=oft          the rules of a published evaluation: oft, simplevla, rlinf, openpi, lerobot; default: heldout
    windows=[8,16]        control steps executed of each chunk; several are compared with the first
    decoding=greedy       or sampled; default: the protocol's
    perturb=table         the drop of success under blur, occlusion, noise, ..., each against none on the same episodes
    init_states=[0,20]    of every task; default: the protocol's
    names=[object_tiny]   rows of conf=published, a list of policies whose success was reported; default: all
    videos.failures=3     also videos.first, videos.per_group: which episodes become a video

Writes report.html, report.md, report.json, timing.json, figures/ and videos/ into the run folder.
"""

from __future__ import annotations

import sys

from vla_rl.config.arguments import evaluate_arguments
from vla_rl.config.compose import own_options
from vla_rl.config.schema import EvaluateConfig
from vla_rl.run.cli import answer_early, run_entry

if __name__ == "__main__":
    # before the imports below, which take seconds
    listed = "conf=published" in sys.argv
    answer_early(__doc__, parse=None if listed else lambda argv: evaluate_arguments(argv)[1])

from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

import lightning as L

from vla_rl.config.instantiate import build, check
from vla_rl.config.schema import Node
from vla_rl.errors import UserError
from vla_rl.evaluation import published
from vla_rl.evaluation.evaluator import Evaluated, Evaluator
from vla_rl.evaluation.plan import EvaluationPlan, check_windows, checkpoint_name, plan_evaluation, window_label
from vla_rl.evaluation.report import Arm, Report, write_report
from vla_rl.evaluation.report_figures import draw_outcomes, draw_tasks
from vla_rl.figures.strips import draw_strips
from vla_rl.figures.video import annotate, file_name, write_mp4
from vla_rl.rollout.datamodule import check_policy
from vla_rl.run.extras import extra
from vla_rl.run.folder import open_run_folder, run_folder, write_json
from vla_rl.run.provenance import versions
from vla_rl.training.trainer import interruptible, make_trainer
from vla_rl.types import Episode, Policy, SimulatorPool


def main(argv: list[str]) -> None:
    if published.CONF in argv:
        names = own_options(EvaluateConfig, argv)[0].names
        print(f"table {published.evaluate_published(names, argv, main)}")
        return
    options, config, given = evaluate_arguments(argv)
    if options.names is not None:
        raise UserError("names chooses rows of conf=published: names=null")
    check(config)
    if config.resume is not None:
        raise UserError(f"an evaluation begins anew each time, and resume={config.resume} is given: resume=null")
    plan = plan_evaluation(config, options, given)
    config.sim = plan.sim
    L.seed_everything(config.seed, verbose=False)
    folder = run_folder(config.run_dir, f"evaluation/{config.conf}")
    trainer = make_trainer(
        config,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the evaluator shares the episodes out
    )
    with interruptible(trainer), ExitStack() as stack:
        pool = stack.enter_context(closing(build(config.sim, "sim")))
        harder = {name: stack.enter_context(closing(build(sim, "sim"))) for name, sim in plan.harder.items()}
        episodes = plan.episodes(pool)
        # all of them before the first episode: what cannot be loaded is found now and not after hours
        policies = {label: load(node, pool) for label, node in plan.policies.items()}
        plan.check_repeats(pool, policies.values())
        check_windows(plan.windows, pool.chunk_steps)
        with open_run_folder(folder, config):
            first, *_ = policies.values()
            window, *windows = plan.windows
            arms = [(label, policy, pool, window) for label, policy in policies.items()]
            arms += [(name, first, under, window) for name, under in harder.items()]
            arms += [(window_label(other), first, pool, other) for other in windows]
            found: dict[str, Evaluated] = {}
            left_out: list[str] = []
            for label, policy, simulators, executed in arms:
                evaluator = Evaluator(policy, simulators, plan.decoding, plan.temperature, options.videos)
                try:
                    found[label] = evaluator.evaluate(trainer, episodes, executed)
                except UserError as error:  # the others' results stand: a small tokenizer lacks another wording's words
                    if label not in harder:
                        raise
                    left_out.append(f"{label} was not run: {error}")
                if harder:  # each has simulators of its own
                    simulators.close()
            if trainer.is_global_zero:
                report = make_report(plan, pool, episodes, found, left_out)
                print_results(report)
                print(f"report {write(folder, report, found)}")


def load(node: Node, pool: SimulatorPool) -> Policy:
    """The policy, if it fits the simulators; raises UserError otherwise."""
    policy = build(node, "policy")
    check_policy(pool, policy)
    return policy


def make_report(
    plan: EvaluationPlan,
    pool: SimulatorPool,
    episodes: list[Episode],
    found: dict[str, Evaluated],
    left_out: list[str],
) -> Report:
    first, *_ = plan.policies.values()
    return Report(
        rules=plan.rules(),
        simulator=plan.simulator(),
        remarks=plan.remarks() + left_out,
        instructions=getattr(pool, "task_languages", {}),
        episodes=episodes,
        arms=[
            Arm(label, checkpoint_name(plan.policies.get(label, first)), of.window, of.success_E, of.steps_E)
            for label, of in found.items()
        ],
        versions=versions(),
    )


def print_results(report: Report) -> None:
    for remark in report.remarks:
        print(remark)
    for arm in report.arms:
        steps, calls = arm.steps_of_successes, arm.calls_of_successes
        effort = "" if steps is None else f", {steps:.1f} steps and {calls:.1f} calls of a success"
        print(f"{arm.label} {arm.checkpoint}: success {report.overall(arm)}{effort}")
    for arm, test in report.paired():
        print(f"{arm.label} against {report.arms[0].label} on the same episodes: {test}")


def write(folder: Path, report: Report, found: dict[str, Evaluated]) -> Path:
    """Videos, figures, the report, and beside it where the time went; returns the page."""
    videos = []
    for label, outcome in found.items():
        (folder / "videos" / label).mkdir(parents=True, exist_ok=True)
        for trajectory in outcome.filmed:
            video = f"videos/{label}/{file_name(trajectory)}.mp4"
            with extra("writing videos"):
                write_mp4(folder / video, annotate(trajectory))
                videos.append(video)
    figures = []
    with extra("drawing figures"):
        figures += [
            ("tasks", f"Success by task, with 95% {report.interval_name}.", draw_tasks(report)),
            ("outcomes", "Every episode. A column of a task's rows is one initial state.", draw_outcomes(report)),
        ]
        for label, outcome in found.items():
            caption = f"First successes and failures of {label}: chunks in the colour of their phase, then the end."
            figures.append((f"episodes_{label}", caption, draw_strips(outcome.pictured)))
    write_json(folder / "timing.json", {label: asdict(outcome.time) for label, outcome in found.items()})
    return write_report(report, folder, figures, videos)


if __name__ == "__main__":
    run_entry(main)
