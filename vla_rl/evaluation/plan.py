"""From a conf and the options of `vla_rl.evaluate` to what is run: episodes, decoding, policies."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vla_rl.checks import check_count, check_range
from vla_rl.config.arguments import SAMPLING
from vla_rl.config.policy_node import policy_node
from vla_rl.config.schema import Config, EvaluateConfig, Node
from vla_rl.errors import UserError
from vla_rl.evaluation.protocols import PROTOCOLS, Protocol, departures, find_protocol, sim_values
from vla_rl.rollout.plan import check_init_states, heldout_episodes
from vla_rl.sim.perturb.registry import PERTURBATIONS
from vla_rl.types import Episode, Policy, SimulatorPool

CLEAN = "clean"  # the label of what the perturbations of perturb=table are compared with
LABELS = "ABCDEFGH"  # of checkpoints, in reports and figures; also how many at most


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What is evaluated, and how."""

    protocol: str
    decoding: str  # greedy or sampled
    temperature: float  # of sampling
    init_states: tuple[int, int]  # half-open range of every task's
    wanted: int | None  # episodes in all; None = every task from every initial state
    seed: int
    sim: Node
    policies: dict[str, Node]  # by label
    windows: Sequence[int | None]  # control steps executed of each chunk; after the first, of further runs; None = all
    harder: dict[str, Node]  # `sim` under each perturbation that the first policy is run with as well, by its name

    def episodes(self, pool: SimulatorPool) -> list[Episode]:
        """Pairs of task and initial state, tasks taking turns; with the held-out rules the very episodes that training
        measures. Past the last pair, episodes begin again with other seeds.

        Raises:
            UserError: initial states that the simulators do not have, or no episode.
        """
        low, high = self.init_states
        check_init_states(pool, f"init_states=[{low},{high}]", high, remedy=f"init_states=[0,{pool.init_states}]")
        pairs = self._pairs(pool)
        wanted = pairs if self.wanted is None else self.wanted
        check_count(f"evaluation.{self.decoding}_episodes", wanted, pairs)
        return heldout_episodes(pool.tasks, self.init_states, wanted, self.seed)

    def check_repeats(self, pool: SimulatorPool, policies: Iterable[Policy]) -> None:
        """Raise UserError for more greedy episodes than pairs, where a policy's would be the same again."""
        pairs, option = self._pairs(pool), f"evaluation.{self.decoding}_episodes"
        if self.decoding == "greedy" and (self.wanted or 0) > pairs and any(p.greedy_repeats for p in policies):
            raise UserError(
                f"{option}={self.wanted}, but there are {pairs} pairs of task and initial state, and greedy decoding "
                f"of one gives the same episode again: {option}={pairs}"
            )

    def _pairs(self, pool: SimulatorPool) -> int:
        low, high = self.init_states
        return (high - low) * len(pool.tasks)

    def rules(self) -> dict[str, Any]:
        """For people: what fixes the result."""
        protocol = PROTOCOLS[self.protocol]
        sampled = f"sampled at temperature {self.temperature:g}"
        perturbed = {"perturbations": ", ".join(str(kind()) for kind in PERTURBATIONS.values())} if self.harder else {}
        rules = perturbed | {
            "protocol": self.protocol,
            "source": protocol.source,
            "decoding": sampled if self.decoding == "sampled" else "greedy",
            "suite": self.sim.get("suite"),
            "horizon": self.sim.get("horizon"),
            "settle_steps": self.sim.get("settle_steps"),
            "windows": ", ".join("whole chunks" if window is None else str(window) for window in self.windows),
            "init_states": f"[{self.init_states[0]},{self.init_states[1]})",
            "seed": self.seed,
        }
        return {name: value for name, value in rules.items() if value is not None}  # a world without settling steps

    def simulator(self) -> dict[str, Any]:
        """The `sim` node, less what changes speed alone."""
        return {key: value for key, value in self.sim.items() if key not in ("workers", "timeout_s")}

    def remarks(self) -> list[str]:
        """What a reader must know before comparing with published numbers."""
        departed = departures(self.protocol, self.sim)
        if self.protocol != "heldout" and self.decoding != PROTOCOLS[self.protocol].decoding:
            departed.append(f"{self.decoding} ({PROTOCOLS[self.protocol].decoding})")
        if self.protocol != "heldout" and self.windows != [PROTOCOLS[self.protocol].window]:
            departed.append(f"windows {self.windows} ({PROTOCOLS[self.protocol].window or 'whole chunks'})")
        return [f"Not comparable with published numbers: {', '.join(departed)}."] if departed else []


def plan_evaluation(config: Config, options: EvaluateConfig, given: Collection[str]) -> EvaluationPlan:
    """Raises UserError where options, conf and protocol contradict each other.

    Args:
        given: keys of the command line.
    """
    protocol = find_protocol(options.protocol)
    decoding = options.decoding or protocol.decoding
    _check_given(options, protocol, decoding, given)
    sim = dict(config.sim or {})
    sim |= sim_values(options.protocol, str(sim.get("suite")), given)
    harder = {name: sim | {"perturb": [name]} for name in PERTURBATIONS} if options.perturb == "table" else {}
    policies = policy_nodes(config, options)
    if harder:
        _check_table(config, policies)
        policies = {CLEAN: next(iter(policies.values()))}
    windows = [protocol.window] if options.windows is None else [*options.windows]
    if len(windows) > 1:
        _check_alone(config, policies, f"windows={windows}", "windows")
        if harder:
            raise UserError(f"windows={windows} and perturb=table each need runs of their own: windows=[{windows[0]}]")
        policies = {window_label(windows[0]): next(iter(policies.values()))}
    init_states = options.init_states or protocol.init_states
    if init_states is not None:
        check_range("init_states", init_states, "[0,50]")
    for name in ("first", "failures", "per_group"):
        check_count(f"videos.{name}", getattr(options.videos, name), 2, least=0)
    return EvaluationPlan(
        protocol=options.protocol,
        decoding=decoding,
        temperature=protocol.temperature or config.rollout.temperature,
        init_states=init_states or config.rollout.heldout_init_states,
        wanted=getattr(config.evaluation, f"{decoding}_episodes") if init_states is None else None,
        seed=config.seed,
        sim=sim,
        policies=policies,
        windows=windows,
        harder=harder,
    )


def _check_given(options: EvaluateConfig, protocol: Protocol, decoding: str, given: Collection[str]) -> None:
    """Raise UserError for a value of the command line that the others leave without effect."""
    for key in SAMPLING:
        if key in given and decoding == "greedy":
            raise UserError(f"{key} is of sampling, and this evaluation is greedy: decoding=sampled, or leave it out")
    if "rollout.temperature" in given and protocol.temperature is not None:
        raise UserError(
            f"protocol={options.protocol} samples at {protocol.temperature:g}: leave rollout.temperature out, or "
            "protocol=heldout"
        )
    other = "greedy" if decoding == "sampled" else "sampled"
    if f"evaluation.{other}_episodes" in given:
        raise UserError(
            f"evaluation.{other}_episodes is of {other} episodes, and these are {decoding}: "
            f"evaluation.{decoding}_episodes=20, or decoding={other}"
        )
    if options.init_states is None and protocol.init_states is None:
        return
    states = f"init_states={list(options.init_states)}" if options.init_states else f"protocol={options.protocol}"
    for key in (f"evaluation.{decoding}_episodes", "rollout.heldout_init_states"):
        if key in given:
            raise UserError(
                f"{states} runs every task once from each of its initial states, so that {key} would do nothing: "
                "leave it out; for fewer episodes init_states=[0,1]"
            )


def window_label(window: int | None) -> str:
    """Of the run with this window, where there are several."""
    return f"window {window}"


def check_windows(windows: Collection[int | None], chunk_steps: int) -> None:
    """Raise UserError for a window that is not a part of what the policy decides, or one given twice."""
    if len(set(windows)) < len(windows) or any(w is not None and not 1 <= w <= chunk_steps for w in windows):
        raise UserError(
            f"windows must be different numbers from 1 to {chunk_steps}, as many control steps as the policy decides "
            f"at a time, got {list(windows)}: windows=[{max(1, chunk_steps // 2)},{chunk_steps}]"
        )


def _check_alone(config: Config, policies: Collection[str], option: str, what: str) -> None:
    if len(policies) > 1:
        raise UserError(f"{option} compares {what} of one checkpoint, got {len(policies)}: checkpoint=FOLDER")
    if (config.trainer or {}).get("strategy") == "fsdp2":  # which splits the weights again for each
        raise UserError(f"{option} does not run under trainer.strategy=fsdp2: trainer.strategy=ddp")


def _check_table(config: Config, policies: Collection[str]) -> None:
    _check_alone(config, policies, "perturb=table", "perturbations")
    if given := (config.sim or {}).get("perturb"):
        raise UserError(f"perturb=table compares each perturbation with none, but sim.perturb={given}: sim.perturb=[]")


def policy_nodes(config: Config, options: EvaluateConfig) -> dict[str, Node]:
    """The conf's policy with each checkpoint in its place; a folder of adapters goes on top of the conf's own."""
    node = config.policy or {}
    if options.checkpoint is None:
        return {"A": node}
    if not 0 < len(options.checkpoint) <= len(LABELS) or len(set(options.checkpoint)) < len(options.checkpoint):
        raise UserError(
            f"checkpoint must name 1 to {len(LABELS)} checkpoints and none twice, got {options.checkpoint}: "
            "checkpoint=[FOLDER_A,FOLDER_B]"
        )
    return {label: policy_node(node, name) for label, name in zip(LABELS, options.checkpoint, strict=False)}


def checkpoint_name(node: Node) -> str:
    """As it was given."""
    return str(node.get("adapter") or node.get("checkpoint"))
