"""Values of the command line that others leave without effect are refused. In a conf they may lie idle, for the runs
that change the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from vla_rl.config.instantiate import nodes
from vla_rl.config.schema import Config, Node
from vla_rl.errors import UserError

ADVANTAGES_WITHOUT_EPS = ("rloo", "dr_grpo", "gae", "distill")  # they divide by no standard deviation
RANDOM = (None, "random:7b")  # checkpoints of OpenVLA-OFT that have no statistics

# an option, the override without which it does nothing, and whether that is there
Need = tuple[str, str, bool]


def check_acts(config: Config, given: Collection[str]) -> None:
    """Raise UserError for a value that another one leaves without effect.

    Args:
        given: keys of the command line.
    """
    for key, needed, there in _needs(config):
        if key in given and not there:
            raise UserError(f"{key} does nothing without {needed}: give both, or leave {key} out")


def _needs(config: Config) -> Iterator[Need]:
    yield from _of_training(config)
    for key, node in nodes(config):
        if of_options := OF_NODES.get(node["_target_"]):
            for option, needed, there in of_options(node, config):
                yield f"{key}.{option}", needed, there or node.get(option) is None  # null asks for nothing


def _of_training(config: Config) -> Iterator[Need]:
    grpo, rollout = config.grpo, config.rollout
    for name in ("stop_after", "stop_run_on"):
        yield f"rollout.{name}", "rollout.stop_below=0.05", rollout.stop_below is not None
    yield "grpo.resample_rounds", "grpo.group_filter=resample", grpo.group_filter == "resample"
    for name in ("clip_low", "clip_high"):
        yield f"grpo.{name}", "grpo.loss=clipped", grpo.loss == "clipped"
    for name in ("clip_low", "dual_clip"):  # limits of negative advantages
        negative = grpo.advantage != "raft" or bool((config.reward or {}).get("kl_coef"))
        yield f"grpo.{name}", "grpo.advantage=grpo", negative or getattr(grpo, name) is None
    yield "grpo.advantage_eps", "grpo.advantage=grpo", grpo.advantage not in ADVANTAGES_WITHOUT_EPS
    every = config.evaluation.every_iterations
    yield "evaluation.every_iterations", "evaluation.sampled_episodes=50", not every or _evaluates(config)


def _evaluates(config: Config) -> bool:
    return config.evaluation.sampled_episodes > 0 or config.evaluation.greedy_episodes > 0


def _tokens(node: Node, config: Config) -> Iterator[Need]:
    yield "unnorm_key", "policy.checkpoint=FOLDER", node.get("checkpoint") not in RANDOM


def _flow(node: Node, config: Config) -> Iterator[Need]:
    yield "train", "policy.lora=null", node.get("lora") is None
    for option in ("cameras", "state_numbers"):
        yield option, "policy.checkpoint=FOLDER", node.get("checkpoint") is not None


def _pcm(node: Node, config: Config) -> Iterator[Need]:
    yield "gripper", "mask.score=divergence", node.get("score") != "credit"


def _policytrim(node: Node, config: Config) -> Iterator[Need]:
    margin = node.get("switch_margin", 0.01)
    first, compared = node.get("extend_iterations", 0), node.get("switch_iterations", 5)
    if type(first) is not int or type(compared) is not int:
        return  # for the class to refuse
    for option in ("beta", "horizon_baseline", "assign", "switch_margin", "switch_iterations"):
        yield option, "reward.extend_iterations=40", first > 0
    yield "switch_iterations", "reward.switch_margin=0.01", margin is not None
    for option in ("switch_margin", "switch_iterations"):  # a shorter stage 1 ends before they are compared
        yield option, f"reward.extend_iterations={compared + 1}", first > compared
    of_penalty = ("sigma_floor", "sigma_floor_steps")
    for option in of_penalty:
        yield option, "reward.penalty=0.15", node.get("penalty") != 0
    for option in ("penalty", *of_penalty):  # one episode cannot leave its own pace
        yield option, "rollout.group_size=8", config.rollout.group_size > 1 or node.get("penalty") == 0
    replaced = [node.get(option) is not None for option in ("step_coef", "penalty", "sigma_floor")]
    yield "preset", "reward.step_coef=null", not all(replaced)


def _trace(node: Node, config: Config) -> Iterator[Need]:
    iteration = node.get("iteration", 2)
    for option in ("iteration", "_target_"):
        yield option, f"iterations={iteration}", type(iteration) is not int or not 0 < config.iterations < iteration


def _before_after(node: Node, config: Config) -> Iterator[Need]:
    yield "_target_", "evaluation.greedy_episodes=50", _evaluates(config)


OF_NODES: dict[str, Callable[[Node, Config], Iterator[Need]]] = {
    "vla_rl.load_policy": _tokens,
    "vla_rl.load_flow_policy": _flow,
    "callbacks.PCM": _pcm,
    "callbacks.PolicyTrim": _policytrim,
    "callbacks.Trace": _trace,
    "callbacks.BeforeAfter": _before_after,
}
