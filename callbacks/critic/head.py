"""`HeadCritic`: a value head on the policy's last hidden state, which learns with the policy (PPO)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast, get_args

import lightning as L
import torch
from torch import Tensor

from callbacks.critic.base import Critic, Valued, Values
from callbacks.policytrim.callback import PolicyTrim
from vla_rl.checks import check_choice, check_count, check_number
from vla_rl.distributed.lockstep import in_lockstep
from vla_rl.distributed.parameters import full_tensor, trainable_parameters
from vla_rl.distributed.seeding import seeded_generator
from vla_rl.distributed.threads import one_thread
from vla_rl.errors import UserError
from vla_rl.functional.gae import Bootstrap, returns
from vla_rl.policy.value_head import ValueHead
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.training.grpo_module import GRPOModule
from vla_rl.types import Decision, Observation, Trajectory

Per = Literal["chunk", "step"]


class HeadCritic(Critic):
    """Trains a value head beside the policy, by one optimizer, and gives every chunk its GAE advantage.

    The head reads the state in which the policy decides (`Policy.log_prob_and_state`). Its values of the rollouts are
    those before the iteration's update. Its loss, `train/value_loss`, is added to the policy's in every training step,
    over the chunks that are trained on; its gradient reaches the policy through the state.

    Args:
        gamma, lam, normalise, bootstrap: see `Critic`.
        per: has a value: each `chunk`, or each control `step` of it, which then has its own advantage.
        lr: learning rate of the head.
        value_clip: how far a value may leave that of the rollout before its gradient stops.
        huber_delta: where the square of an error becomes linear.
        coef: weight of the value loss beside the policy's.
        warmup_steps: optimizer steps, the first ones, that train the head alone.

    Raises:
        UserError: for a value outside its range, a name that does not exist, or, before anything is written, a policy
            without such a state, `per=step` where the loss has one ratio for a whole chunk, or PolicyTrim's first
            stage, whose rewards depend on what the state does not show.
    """

    def __init__(
        self,
        gamma: float = 0.99,
        lam: float = 0.95,
        normalise: str = "centre",
        bootstrap: Bootstrap = "none",
        per: Per = "chunk",
        lr: float = 3e-3,
        value_clip: float = 0.2,
        huber_delta: float = 10.0,
        coef: float = 1.0,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(gamma, lam, normalise, bootstrap=bootstrap)
        check_choice("critic.per", per, get_args(Per))
        check_number("critic.lr", lr, 3e-3, above=0)
        check_number("critic.value_clip", value_clip, 0.2, above=0)
        check_number("critic.huber_delta", huber_delta, 10.0, above=0)
        check_number("critic.coef", coef, 1.0, above=0)
        check_count("critic.warmup_steps", warmup_steps, 0, least=0)
        self.lr, self.value_clip, self.huber_delta, self.coef = lr, value_clip, huber_delta, coef
        self.per, self.warmup_steps = per, warmup_steps
        self._judge: ValueHead | None = None  # the head as it was before the last update

    def check_run(self, data: RolloutDataModule, callbacks: Sequence[L.Callback]) -> None:
        super().check_run(data, callbacks)
        data.request_extra("state", "critic=head")
        if data.grpo.loss == "nft":
            raise UserError("critic=head learns with the log-probabilities, of which grpo.loss=nft has none: "
                            "critic=separate, or grpo.loss=clipped")  # fmt: skip
        for callback in callbacks:
            if isinstance(callback, PolicyTrim) and callback.extend_iterations:
                raise UserError(
                    "critic=head does not see how much of its chunks an episode executes, on which the rewards of "
                    f"reward.extend_iterations={callback.extend_iterations} depend: critic=separate, or "
                    "reward.extend_iterations=0"
                )
        if self.per == "step" and data.grpo.ratio == "chunk":
            raise UserError(
                "critic.per=step gives each control step its own advantage, and grpo.ratio=chunk has one probability "
                "ratio for all of them: grpo.ratio=token, or critic.per=chunk"
            )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        module = cast(GRPOModule, pl_module)
        if not isinstance(module.value_head, ValueHead):
            module.value_head = self._new_head()
        self.head = module.value_head

    def _new_head(self) -> ValueHead:
        return ValueHead(
            self.data.policy.state_dims,
            self.data.policy.chunk_steps if self.per == "step" else 1,
            lr=self.lr,
            clip=self.value_clip,
            huber_delta=self.huber_delta,
            coef=self.coef,
            generator=seeded_generator(self.data.seed, "value head"),
        )

    @torch.no_grad()
    def values(self, trajectories: Sequence[Trajectory]) -> list[Values]:
        self._judge = head = self._whole_head()
        states = [t.actions.extras.pop("state") for t in trajectories]  # not kept: as wide as the policy
        finals = [0.0] * len(states)
        with one_thread():  # one forward per episode: its values do not depend on who else was collected
            values = [head(state_ND) for state_ND in states]
            if self.bootstrap != "none":
                finals = [float(head(state_1D)[0, 0]) for state_1D in self._final_states(trajectories).split(1)]
        return [Values(value_NS, final) for value_NS, final in zip(values, finals, strict=True)]

    def extras(self, episode: Valued) -> dict[str, Tensor]:
        return_NS = returns(episode.advantage_NS, episode.value_NS).float()
        return super().extras(episode) | {"values": episode.value_NS, "returns": return_NS}

    def judge(self) -> Callable[[Decision], float] | None:
        return self._judge and partial(_value, self._judge)

    def _whole_head(self) -> ValueHead:
        """A copy on the host, put together where the head is sharded; a collective then."""
        head = self._new_head()
        for own, p in zip(head.parameters(), self.head.parameters(), strict=True):
            own.copy_(full_tensor(p.detach()))
        return head

    def _final_states(self, trajectories: Sequence[Trajectory]) -> Tensor:
        """State of the policy after each episode's last step, [episodes, D]."""
        size, states = self.data.pool.slots, []
        with in_lockstep(self.data.policy, self.trainer) as actor:
            for start in range(0, len(trajectories), size):
                observation = _last_observation(trajectories[start : start + size])
                states.append(actor.act(observation, [0] * len(observation.instruction_N), 0.0).extras["state"])
        return torch.cat(states)

    def state_dict(self) -> dict[str, Any]:
        judge = {"judge": self._judge.state_dict()} if self.stops and self._judge else {}
        return super().state_dict() | judge

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "judge" in state_dict:
            self._judge = self._new_head()
            self._judge.load_state_dict(state_dict["judge"])

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step < self.warmup_steps:
            for p in trainable_parameters(self.data.policy).values():
                p.grad = None  # the optimizer leaves it alone, its moments included


@torch.no_grad()
def _value(head: ValueHead, decision: Decision) -> float:
    return float(head(decision.answer.extras["state"])[0, 0])


def _last_observation(trajectories: Sequence[Trajectory]) -> Observation:
    frames = [t.last_frame_HWC for t in trajectories if t.last_frame_HWC is not None]
    proprios = [t.last_proprio_P for t in trajectories if t.last_proprio_P is not None]
    return Observation(torch.stack(frames), torch.stack(proprios), [t.instruction for t in trajectories])
