"""A value head that learns with the policy, on the toy world under a real Trainer."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from callbacks.critic.base import Values, _set_advantages
from callbacks.critic.head import HeadCritic
from callbacks.masks.advantage_mask import AdvantageMask
from tests.helpers.make import make_trajectory
from tests.helpers.toy import L as STEPS
from tests.helpers.toy import ToyPolicy, ToyPool
from tests.helpers.toy_training import Rewards
from tests.helpers.toy_training import fit as fit_toy
from vla_rl.errors import UserError
from vla_rl.policy.value_head import ValueHead

GAE = {"advantage": "gae", "group_filter": "keep"}


class Keep(Callback):
    """The first batch, and the parameters before every optimizer step and after the last."""

    def __init__(self):
        self.batch, self.policy, self.head = None, [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = self.batch or batch
        self.remember(pl_module)

    def on_train_end(self, trainer, pl_module):
        self.remember(pl_module)

    def remember(self, module):
        for seen, part in ((self.policy, module.policy), (self.head, module.value_head)):
            seen.append(torch.cat([p.detach().flatten().clone() for p in part.parameters()]))


def fit(tmp_path, *callbacks, iterations=1, critic=None, **options):
    keep, critic = Keep(), critic or HeadCritic(lr=1e-2)
    _, module, data, recorder = fit_toy(
        tmp_path, iterations=iterations, callbacks=[critic, *callbacks, keep], **GAE | options
    )
    return module, data, recorder, keep


def test_the_gradient_is_that_of_both_losses(tmp_path):
    """At ratio 1: -sum w A log pi + coef sum w max(huber, clipped huber), w = 1 / tokens, on the first step."""
    critic = HeadCritic(coef=0.5, value_clip=0.01, huber_delta=0.3)
    _, _, recorder, keep = fit(tmp_path, critic=critic, loss_norm="token_mean", entropy_coef=0.0, micro_rows=3)
    policy, batch = ToyPolicy(), keep.batch
    head = ValueHead(24, 1, lr=1, clip=1, huber_delta=1, coef=1, generator=torch.Generator())
    torch.nn.utils.vector_to_parameters(keep.head[0], head.parameters())
    logprob, _ = policy.log_prob(batch, 1.0)
    share_N = batch.token_mask_NLA.flatten(1).sum(1) / batch.token_mask_NLA.sum()
    value_N = head(policy.head(batch.proprio_NP))[:, 0]
    old_N, return_N = batch.actions.extras["values"][:, 0], batch.actions.extras["returns"][:, 0]
    torch.testing.assert_close(value_N.detach(), old_N)  # nothing was updated since

    def huber(error):
        return torch.where(error.abs() <= 0.3, error.square() / 2, 0.3 * (error.abs() - 0.15))

    clipped_N = old_N + (value_N - old_N).clamp(-0.01, 0.01)
    worst_N = torch.maximum(huber(return_N - value_N), huber(return_N - clipped_N))
    gain = (batch.advantage_N[:, None, None] * logprob * batch.token_mask_NLA).sum() / batch.token_mask_NLA.sum()
    (0.5 * (share_N * worst_N).sum() - gain).backward()
    expected = torch.cat([p.grad.flatten() for part in (policy, head) for p in part.parameters()])
    assert policy.head.weight.grad.norm() > 1e-2 and head.last.weight.grad.norm() > 1e-2
    torch.testing.assert_close(recorder.gradients[0], expected, atol=1e-6, rtol=1e-4)


def test_values_move_the_policy_through_its_state(tmp_path):
    _, _, with_values, _ = fit(tmp_path, critic=HeadCritic(coef=10.0))
    _, _, without, _ = fit(tmp_path, critic=HeadCritic(coef=1e-9))
    size = sum(p.numel() for p in ToyPolicy().parameters())
    assert (with_values.gradients[0][:size] - without.gradients[0][:size]).norm() > 1e-3


def test_the_gradient_does_not_depend_on_micro_batches(tmp_path):
    _, _, one, _ = fit(tmp_path, micro_rows=1000)
    _, _, many, _ = fit(tmp_path, micro_rows=3)
    torch.testing.assert_close(many.gradients[0], one.gradients[0], atol=1e-6, rtol=1e-4)


def test_values_returns_and_advantages_of_the_rollouts(tmp_path):
    """Returns are the advantages before they are normalised, plus the values; the state is not kept."""
    _, _, _, keep = fit(tmp_path, critic=HeadCritic(lam=1.0, gamma=1.0))
    batch = keep.batch
    assert set(batch.actions.extras) == {"value", "values", "returns"}
    for i, t in enumerate(batch.trajectories):
        own = batch.trajectory_N == i
        # gamma 1, lambda 1: what was earned in the end
        torch.testing.assert_close(batch.actions.extras["returns"][own], torch.full((len(t), 1), float(t.success)))
    assert batch.advantage_N.std() > 0.5 and abs(float(batch.advantage_N.mean())) < 0.5


@pytest.mark.parametrize(
    ("bootstrap", "success", "last"),
    [("none", False, 0.3), ("truncated", True, 0.3), ("truncated", False, 0.795), ("always", True, 0.795)],
)
def test_bootstrap(bootstrap, success, last):
    """Rewards 0 0 1, values .5 .6 .7 and .5 after the end: 1.495 - .7 = .795 with it, 1 - .7 = .3 without."""
    critic, trajectory = HeadCritic(bootstrap=bootstrap), make_trajectory([0, 0, 0], success=success)
    trajectory.reward = 1.0
    advantage_N = critic._valued(trajectory, Values(torch.tensor([[0.5], [0.6], [0.7]]), 0.5)).advantage_NS[:, 0]
    assert float(advantage_N[2]) == pytest.approx(last, abs=1e-6)
    if last == 0.3:
        assert advantage_N.tolist() == pytest.approx([0.446829, 0.37515, 0.3], abs=1e-6)


def test_bootstrap_leaves_out_what_was_stopped():
    """A lost episode is a failure and did not run out of time."""
    critic, trajectory = HeadCritic(bootstrap="truncated"), make_trajectory([0, 0, 0], success=False)
    values = Values(torch.tensor([[0.5], [0.6], [0.7]]), 0.5)
    added = critic._valued(trajectory, values).advantage_NS[2, 0]
    trajectory.stopped = True
    assert float(critic._valued(trajectory, values).advantage_NS[2, 0]) == pytest.approx(-0.7)
    assert float(added) == pytest.approx(-0.7 + 0.99 * 0.5)


def test_control_steps_with_values_of_their_own():
    """The oracle of an episode of three units, as two chunks of two steps, of which the last executed one: the same
    numbers in the same order."""
    critic, trajectory = HeadCritic(per="step"), make_trajectory([0, 0])
    trajectory.executed_N = torch.tensor([2, 1])
    valued = critic._valued(trajectory, Values(torch.tensor([[0.5, 0.6], [0.7, 9.0]])))
    expected = torch.tensor([[0.446829, 0.37515], [0.3, 0.0]])
    torch.testing.assert_close(valued.advantage_NS.float(), expected, atol=1e-6, rtol=0)
    _set_advantages(trajectory, valued)
    torch.testing.assert_close(trajectory.advantage_N.float(), torch.tensor([0.4109895, 0.3]), atol=1e-6, rtol=0)
    differs_NL = trajectory.actions.extras["step_advantage"].float()
    torch.testing.assert_close(differs_NL, torch.tensor([[0.0358395, -0.0358395], [0.0, 0.0]]), atol=1e-6, rtol=0)


def test_steps_of_one_are_chunks():
    trajectory = make_trajectory([0, 0, 0])
    trajectory.executed_N = torch.ones(3, dtype=torch.int64)
    values = Values(torch.tensor([[0.5], [0.6], [0.7]]))
    chunk, step = (HeadCritic(per=per)._valued(trajectory, values) for per in ("chunk", "step"))
    assert torch.equal(chunk.advantage_NS, step.advantage_NS) and chunk.counts_NS.all() and step.counts_NS.all()


def test_the_gradient_where_control_steps_have_values(tmp_path):
    """-sum w A_l log pi + sum w huber over the executed steps, each with its own advantage, value and return."""
    critic = HeadCritic(per="step")
    _, _, recorder, keep = fit(tmp_path, critic=critic, loss_norm="token_mean", entropy_coef=0.0)
    policy, batch = ToyPolicy(), keep.batch
    head = ValueHead(24, STEPS, lr=1, clip=1, huber_delta=1, coef=1, generator=torch.Generator())
    torch.nn.utils.vector_to_parameters(keep.head[0], head.parameters())
    logprob, _ = policy.log_prob(batch, 1.0)
    advantage_NL = batch.advantage_N[:, None] + batch.actions.extras["step_advantage"]
    counted = batch.token_mask_NLA / batch.token_mask_NLA.sum()
    value_NL, return_NL = head(policy.head(batch.proprio_NP)), batch.actions.extras["returns"]
    error_NL = (return_NL - value_NL).square() / 2
    ((counted.sum(2) * error_NL).sum() - (advantage_NL[..., None] * logprob * counted).sum()).backward()
    expected = torch.cat([p.grad.flatten() for part in (policy, head) for p in part.parameters()])
    torch.testing.assert_close(recorder.gradients[0], expected, atol=1e-6, rtol=1e-4)
    executed_NL = batch.token_mask_NLA.any(2)
    assert not executed_NL.all()  # some episodes end within a chunk
    assert (advantage_NL[:, 0] - advantage_NL[:, 1])[executed_NL.all(1)].abs().min() > 1e-4
    assert advantage_NL[executed_NL].mean().abs() < 1.0


def test_steps_of_their_own_need_ratios_of_their_own(tmp_path):
    line = "critic.per=step gives each control step its own advantage, and grpo.ratio=chunk has one probability ratio"
    with pytest.raises(UserError, match=line):
        fit(tmp_path, critic=HeadCritic(per="step"), ratio="chunk")


def test_the_value_after_the_end_is_of_the_last_observation(tmp_path):
    class Recording(HeadCritic):
        def values(self, trajectories):
            found = super().values(trajectories)
            self.found = [(t, v) for t, v in zip(trajectories, found, strict=True)]
            return found

    critic = Recording(bootstrap="always")
    fit(tmp_path, critic=critic, iterations=0)
    _, _, _, keep = fit(tmp_path, critic=critic)
    head = ValueHead(24, 1, lr=1, clip=1, huber_delta=1, coef=1, generator=torch.Generator())
    torch.nn.utils.vector_to_parameters(keep.head[0], head.parameters())
    for t, values in critic.found:
        expected = head(ToyPolicy().head(t.last_proprio_P)[None]).detach()
        assert values.final == pytest.approx(float(expected), abs=1e-6) and values.final != 0


def test_the_first_steps_train_the_head_alone(tmp_path):
    _, _, _, keep = fit(tmp_path, iterations=2, critic=HeadCritic(warmup_steps=3))  # of 4 steps
    assert all(torch.equal(keep.policy[0], later) for later in keep.policy[:4])
    assert not torch.equal(keep.policy[3], keep.policy[4])
    assert all(not torch.equal(a, b) for a, b in zip(keep.head, keep.head[1:], strict=False))


def test_its_own_learning_rate(tmp_path):
    """The first step of Adam moves each parameter by about the learning rate."""
    _, _, _, keep = fit(tmp_path, critic=HeadCritic(lr=1e-3))
    assert float((keep.head[1] - keep.head[0]).abs().max()) == pytest.approx(1e-3, rel=0.01)
    assert float((keep.policy[1] - keep.policy[0]).abs().max()) == pytest.approx(1e-2, rel=0.01)


def test_it_learns_to_explain_the_outcome(tmp_path):
    """Of a policy that stays as it is: the head alone is trained."""
    _, _, recorder, _ = fit(tmp_path, critic=HeadCritic(lr=1e-2, warmup_steps=1000), iterations=12, epochs=2)
    last = recorder.metrics[-1]
    assert last["critic/explained_variance"] > 0.2 > recorder.metrics[0]["critic/explained_variance"]
    assert last["train/value_loss"] < recorder.metrics[0]["train/value_loss"]


class OneDecision(ToyPool):
    """Episodes end after their first chunk."""

    def __init__(self):
        super().__init__()
        self.max_chunks = 1

    def step(self, slot, command_LA):
        super().step(slot, command_LA)
        self._ready[-1].done = True
        self._state.pop(slot, None)


@pytest.mark.parametrize("rewards", [(1, 1, 1, 1), (0, 0, 0, 0), (0, 1, 0, 0)], ids=["all", "none", "one"])
@pytest.mark.parametrize("pool", [ToyPool, OneDecision])
def test_there_is_never_a_nan(tmp_path, rewards, pool):
    callbacks = [Rewards(*rewards), AdvantageMask(budget=1)]
    module, _, recorder, _ = fit(tmp_path, *callbacks, pool=pool(), iterations=2)
    assert all(value == value for metrics in recorder.metrics for value in metrics.values())
    assert all(m["train/skipped_steps"] == 0 for m in recorder.metrics)
    assert all(p.isfinite().all() for p in module.parameters())


def test_a_policy_without_a_state_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyPolicy, "OFFERS", frozenset({"hidden"}))
    with pytest.raises(UserError, match="critic=head needs 'state' of each action chunk, and ToyPolicy does not offer"):
        fit(tmp_path)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"lr": 0}, r"critic.lr must be a number > 0, got 0 \(critic.lr=0.003\)"),
        (
            {"bootstrap": "some"},
            r"no bootstrap named 'some'. Choices: none, truncated, always \(critic.bootstrap=none\)",
        ),
        ({"per": "token"}, "'token'.* chunk, step"),
        ({"warmup_steps": -1}, r"critic.warmup_steps must be an integer >= 0, got -1 \(critic.warmup_steps=0\)"),
    ],
)
def test_options_out_of_range_are_refused(options, line):
    with pytest.raises(UserError, match=line):
        HeadCritic(**options)
