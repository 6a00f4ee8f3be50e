"""What critics do with values that are written down: no policy is trained here, no nets are fitted but by one step."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from callbacks.critic import base
from callbacks.critic.base import Valued, quality
from callbacks.critic.head import HeadCritic
from callbacks.critic.separate import Fitted, SeparateCritic, Span
from callbacks.critic.value_nets import LR, WEIGHT_DECAY, ValueNets
from callbacks.policytrim.callback import PolicyTrim
from tests.helpers.make import make_trajectory
from vla_rl.config.schema import GRPOConfig, RolloutConfig
from vla_rl.errors import UserError
from vla_rl.types import Decision, Episode, RolloutGroup

D, L = 3, 2  # numbers of a state, control steps of a chunk


def placed(critic, *, iteration=0, iterations=7, rank=0, stop_below=None, run_on=0.5, policy=None):
    """A critic in a run that is not there."""
    critic.trainer = SimpleNamespace(
        current_epoch=iteration, max_epochs=iterations, world_size=1, is_global_zero=rank == 0, global_step=0
    )
    rollout = RolloutConfig(stop_below=stop_below, stop_run_on=run_on)
    policy = policy or SimpleNamespace(state_dims=D, chunk_steps=L)
    critic.data = SimpleNamespace(seed=3, max_chunks=4, rollout=rollout, policy=policy)
    return critic


def episodes(*outcomes, first=0):
    """One group of episodes of two chunks."""
    made = [make_trajectory([0, 0], uid=first + i, success=success) for i, success in enumerate(outcomes)]
    for t in made:
        t.actions.extras["state"] = torch.full((2, D), float(t.episode.uid))
    return made


# What all critics do.


@pytest.fixture
def two_ranks(monkeypatch):
    """Another rank has as many episodes, behind whose numbers lies 100; it earned 1 where this one's failed."""

    def gathered(own, trainer):
        if isinstance(own[0], Valued):
            return [*(replace(v, uid=v.uid + 100, advantage_NS=-v.advantage_NS) for v in own), *own]
        return [*((uid + 100, 1.0) for uid, _ in own), *own]

    monkeypatch.setattr(base, "gather_lists", gathered)


def test_the_mean_reward_is_that_of_all_ranks(two_ranks):
    """Rewards 0 0 here and 1 1 there: minus their mean 1/2 they are -1/2 and 1/2, whose root mean square is 1/2."""
    critic = placed(SeparateCritic())
    groups = [RolloutGroup(episodes(False, False))]
    with pytest.warns(UserWarning, match="rewards minus their mean 0.5"):
        critic.set_advantages(groups)
    assert [e.uid for e in critic._present] == [0, 1, 100, 101]
    for t in groups[0].trajectories:
        assert t.actions.extras["value"].tolist() == [0.5, 0.5]
        assert t.advantage_N.tolist() == pytest.approx([-1.0, -1.0], abs=1e-4)


@pytest.mark.parametrize(("outcomes", "spread", "alike"), [((True, False), 0.5, False), ((True, True), 0.0, True)])
def test_without_values_nothing_is_said_of_them(outcomes, spread, alike):
    critic = placed(SeparateCritic())
    with pytest.warns(UserWarning) as said:
        critic.set_advantages([RolloutGroup(episodes(*outcomes))])
    assert critic._metrics == {"critic/advantage_std": spread}
    assert any("all chunks have the same advantage" in str(w.message) for w in said) == alike


def valued(uid, success, values):
    value_NS = torch.tensor(values)[:, None]
    executed = torch.ones_like(value_NS, dtype=torch.bool)
    return Valued(uid, float(success), success, value_NS, executed, torch.zeros_like(value_NS))


def test_explained_variance_of_all_decisions_and_by_decision():
    """Four of each outcome. At the first decision the values say nothing; at the second errors are .2: 1 - .04 / .25;
    over both their variance is (.25 + .04) / 2. The third decision has four failures and three successes."""
    present = [valued(uid, True, [0.5, 0.8]) for uid in range(4)]
    present += [valued(4 + uid, False, [0.5, 0.2]) for uid in range(4)]
    assert quality(present) == {
        "critic/explained_variance": pytest.approx(0.42),
        "critic/explained_variance/decision_1": pytest.approx(0.0, abs=1e-6),
        "critic/explained_variance/decision_2": pytest.approx(0.84),
    }
    longer = [valued(e.uid, e.success, [*e.value_N.tolist(), 0.5]) if e.uid else e for e in present]
    assert "critic/explained_variance/decision_3" not in quality(longer)


@pytest.mark.parametrize(("rank", "drawn"), [(0, [5, 7]), (1, [])])
def test_the_figure_is_drawn_every_five_iterations_and_at_the_end(monkeypatch, rank, drawn):
    said = []
    monkeypatch.setattr(base, "draw_values", lambda values, iteration: said.append(iteration))
    monkeypatch.setattr(base, "save_figures", lambda make, trainer: make())
    for iteration in range(7):
        critic = placed(SeparateCritic(), iteration=iteration, rank=rank)
        critic.on_train_epoch_end(critic.trainer, None)
    assert said == drawn


@pytest.mark.parametrize(("share", "runs_on"), [(0.0, False), (1.0, True)])
def test_the_share_of_lost_episodes_that_run_on(share, runs_on):
    critic = placed(SeparateCritic(), stop_below=0.1, run_on=share)
    critic.judge = lambda: lambda decision: 0.0
    watches = [critic._watch(Episode(uid=uid, task=0, init_state=0, seed=0)) for uid in range(20)]
    assert all(watch.runs_on == runs_on for watch in watches)


def test_how_many_ran_on_is_counted_since_the_run_began():
    critic = placed(SeparateCritic(), stop_below=0.1)
    assert critic._lost(episodes(True)) == {"rollout/stopped": 0.0}  # none was lost yet
    critic._ran_on, critic._wrong = 5.0, 2.0
    resumed = placed(SeparateCritic(), stop_below=0.1)
    resumed.load_state_dict(critic.state_dict())
    assert (resumed._ran_on, resumed._wrong) == (5.0, 2.0)


def test_windows_of_another_advantage_are_refused():
    with pytest.raises(UserError, match="would replace the critic's advantages: reward.horizon_baseline=group"):
        SeparateCritic().check_run(None, [PolicyTrim(horizon_baseline="factorised")])


def test_a_head_that_does_not_see_the_windows_is_refused_where_they_differ():
    data = SimpleNamespace(request_extra=lambda *_: None, grpo=SimpleNamespace(loss="clipped", ratio="token"))
    HeadCritic().check_run(data, [PolicyTrim()])
    with pytest.raises(UserError, match="reward.extend_iterations=3 depend: critic=separate, or reward.extend_iter"):
        HeadCritic().check_run(data, [PolicyTrim(extend_iterations=3)])


def test_a_discount_above_one_is_refused():
    with pytest.raises(UserError, match=r"critic.gamma must be a number >= 0 and <= 1, got 1.5"):
        SeparateCritic(gamma=1.5)


# A head that learns with the policy.


def head_critic(**options):
    critic = placed(HeadCritic(**options), stop_below=0.1)
    critic.head = critic._new_head()
    return critic


def decision(state):
    answer = SimpleNamespace(extras={"state": torch.tensor([state])})
    return Decision(0, torch.zeros(1), answer, 0.0)


@pytest.mark.parametrize("per", ["chunk", "step"])
@pytest.mark.parametrize("bootstrap", ["none", "truncated", "always"])
def test_the_value_of_a_moment_is_that_of_its_first_control_step(per, bootstrap):
    critic = head_critic(per=per, bootstrap=bootstrap)
    nn.init.normal_(critic.head.last.weight, generator=torch.Generator().manual_seed(0))
    critic._final_states = lambda trajectories: torch.eye(D)[: len(trajectories)]
    found = critic.values(episodes(True, False))
    with torch.no_grad():
        at_the_end = critic.head(torch.eye(D))[:2, 0].tolist()
        assert [v.final for v in found] == ([0.0, 0.0] if bootstrap == "none" else pytest.approx(at_the_end))
        assert found[1].value_NS.shape == (2, L if per == "step" else 1)
        assert critic.judge()(decision([1.0, 0.0, 0.0])) == pytest.approx(at_the_end[0])
        if per == "step":
            assert abs(at_the_end[0] - float(critic.head(torch.eye(D))[0, 1])) > 1e-3


def test_who_judges_the_rollouts_does_not_learn_meanwhile():
    critic = head_critic()
    assert critic.judge() is None
    critic.values(episodes(True))
    before = critic.judge()(decision([1.0, 2.0, 3.0]))
    resumed = head_critic()
    resumed.load_state_dict(critic.state_dict())
    assert resumed.judge()(decision([1.0, 2.0, 3.0])) == before != 0
    with torch.no_grad():
        critic.head.last.weight.zero_()
    assert critic.judge()(decision([1.0, 2.0, 3.0])) == before


def test_the_heads_options():
    head = head_critic(lr=0.01, value_clip=0.1, huber_delta=2.0, coef=0.5)._new_head()
    assert (head.lr, head.clip, head.huber_delta, head.coef) == (0.01, 0.1, 2.0, 0.5)


def test_a_new_head_is_drawn_from_the_runs_seed_and_expects_little():
    first, torch_seed = head_critic().head, torch.initial_seed()
    torch.manual_seed(1)
    try:
        again = head_critic().head
    finally:
        torch.manual_seed(torch_seed)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    state_ND = torch.randn(100, D, generator=torch.Generator().manual_seed(0))
    assert 0 < first(state_ND).abs().max() < 0.1
    assert torch.equal(first(state_ND.bfloat16()), first(state_ND.bfloat16().float()))  # in float32


@pytest.mark.parametrize(("step", "learns"), [(2, False), (3, True)])
def test_before_the_warm_up_ends_the_policy_has_no_gradient(step, learns):
    """None, not zero: with zeros the optimizer's decay and moments would move it."""
    policy = nn.Linear(2, 1)
    policy(torch.ones(1, 2)).sum().backward()
    critic = placed(HeadCritic(warmup_steps=3), policy=policy)
    critic.trainer.global_step = step
    critic.on_after_backward(critic.trainer, None)
    assert [p.grad is not None for p in policy.parameters()] == [learns, learns]


@pytest.mark.parametrize(
    ("options", "grpo", "message"),
    [
        (
            {},
            {"loss": "nft"},
            "learns with the log-probabilities, .* critic=separate, or grpo.loss=clipped",
        ),
        ({"per": "step"}, {"ratio": "chunk"}, "grpo.ratio=token, or critic.per=chunk"),
    ],
)
def test_losses_that_a_head_cannot_learn_beside(options, grpo, message):
    asked = []
    data = SimpleNamespace(grpo=GRPOConfig(**grpo), request_extra=lambda name, who: asked.append(name))
    with pytest.raises(UserError, match=message):
        HeadCritic(**options).check_run(data, [])
    assert asked == ["state"]


# Nets of their own.


def test_no_earlier_iteration_is_kept_where_none_is_asked_for():
    critic = placed(SeparateCritic(iterations=0))
    with pytest.warns(UserWarning):
        critic.set_advantages([RolloutGroup(episodes(True, True))])
    assert critic.earlier == []


def test_values_go_to_their_episodes_and_the_loss_is_their_cross_entropy():
    """Episode 7 succeeds with values .8, episode 3 fails with .4: -(2 ln .8 + 2 ln .6) / 4 = .366985."""
    critic = placed(SeparateCritic())
    critic._fit, critic._fitted = (
        lambda present: torch.tensor([0.4, 0.4, 0.8, 0.8]),
        Fitted(None, Span(0.0, 1.0)),
    )  # by uid
    (late,), (early,) = episodes(True, first=7), episodes(False, first=3)
    found = critic.values([late, early])
    assert [v.value_NS[:, 0].tolist() for v in found] == [pytest.approx([0.8, 0.8]), pytest.approx([0.4, 0.4])]
    assert critic._metrics["critic/loss"] == pytest.approx(0.366985, abs=1e-6)


def test_nobody_judges_where_there_was_nothing_to_learn():
    critic = placed(SeparateCritic(), stop_below=0.1)
    critic._fitted = Fitted(None, Span(0.0, 1.0))
    with pytest.warns(UserWarning):
        critic.set_advantages([RolloutGroup(episodes(True, True))])
    assert critic.judge() is None


def test_a_decision_that_no_net_has_seen_is_judged_by_all_in_the_rewards_units():
    """Shares .2 and .6 of rewards from -1 to 2: -1 + 3 x .4."""
    nets = SimpleNamespace(mean_D=torch.zeros(1), values=lambda feature_1D: torch.tensor([[0.2], [0.6]]))
    assert Fitted(nets, Span(-1.0, 2.0)).value(torch.zeros(1, 1)) == pytest.approx(0.2)


def chain(bias=0.0):
    """One net of one unit in each layer, whose weights are 1."""
    numbers = [1.0, 0.0, 1.0, 0.0, 1.0, bias]
    parameters = [torch.full((1, 1, 1), number, requires_grad=True) for number in numbers]
    return ValueNets(torch.tensor([1.0]), torch.tensor([2.0]), parameters)


def test_a_net_written_out():
    """(5 - 1) / 2 = 2 goes through all layers."""
    assert chain().values(torch.tensor([[5.0]])).tolist() == [[pytest.approx(1 / (1 + 2.718281828**-2))]]


def test_dropped_units_are_made_up_for():
    """Both hidden units stay in .7 x .7 of the draws, and count 1 / .49 then: the mean is 2."""
    logit_R = chain().logits(torch.full((1, 4000, 1), 5.0), torch.Generator().manual_seed(0))[0]
    kept_R = logit_R > 0
    assert float(kept_R.float().mean()) == pytest.approx(0.49, abs=0.03)
    torch.testing.assert_close(logit_R[kept_R], torch.full((int(kept_R.sum()),), 2 / 0.49))


@pytest.mark.parametrize(("steps", "moved"), [(1, LR), (2, 1.5 * LR)])
def test_steps_of_the_optimizer(steps, moved):
    """The last bias always has a gradient of one sign, so Adam moves it by the learning rate, which a cosine halves in
    the second of two steps; decay takes a share of it away."""
    net = chain(bias=10.0)
    net.fit(torch.tensor([[5.0]]), torch.tensor([0.0]), torch.ones(1, 1, dtype=torch.bool), steps, torch.Generator())
    after = float(net.parameters[-1].detach())
    assert 10.0 - after == pytest.approx(moved * (1 + 10.0 * WEIGHT_DECAY), rel=5e-3)
