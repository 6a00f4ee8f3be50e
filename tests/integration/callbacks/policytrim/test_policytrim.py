"""PolicyTrim as a callback: windows, rewards, the two stages, resume in either, and what users may get wrong."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from callbacks.masks.pcm import PCM
from callbacks.policytrim.callback import PolicyTrim
from tests.helpers.toy import ToyPolicy, ToyPool
from tests.helpers.trim_fit import BOTH, Groups, fit, rows, weights
from vla_rl.config.compose import compose
from vla_rl.config.schema import EvaluationConfig, GRPOConfig, OptimConfig, RolloutConfig
from vla_rl.functional.phases import trajectory_phases
from vla_rl.rollout.datamodule import RolloutDataModule
from vla_rl.training.grpo_module import GRPOModule

# --------------------------------------------------------------------------------------------------------- stage 1


def test_windows_are_balanced_over_each_group_and_executed(tmp_path):
    seen = Groups()
    fit(tmp_path, PolicyTrim(extend_iterations=2, **BOTH), seen)
    for groups in seen.groups:
        for group in groups:
            assert sum(t.episode.window == 1 for t in group.trajectories) in (2, 3)
    for t in seen.trajectories:
        assert (t.executed_N[:-1] == t.episode.window).all()
        assert t.executed_N[-1] <= t.episode.window
    assert {sum(t.episode.window == 1 for t in g.trajectories) for gs in seen.groups for g in gs} == {2, 3}


def test_stage_1_rewards_the_window(tmp_path):
    seen = Groups()
    fit(tmp_path, PolicyTrim(extend_iterations=2, beta=0.5, **BOTH), seen)
    rewards = {(t.success, t.episode.window): t.reward for t in seen.trajectories}
    assert rewards == {(True, 1): 1.25, (True, 2): 1.5, (False, 1): 0.0, (False, 2): 0.0}


def test_only_executed_tokens_count(tmp_path):
    seen = Groups()
    fit(tmp_path, PolicyTrim(extend_iterations=2, **BOTH), seen)
    narrow = 0
    for batch in seen.batches:
        window_N = torch.tensor([batch.trajectories[i].episode.window for i in batch.trajectory_N.tolist()])
        counted = batch.token_mask_NLA.any(-1)
        assert counted[:, 0].any()
        assert not counted[window_N == 1, 1].any()
        narrow += int((window_N == 1).sum())
    assert narrow > 10


def test_the_factorised_baseline_gives_nothing_to_groups_that_succeed_throughout(tmp_path):
    for baseline in ("group", "factorised"):
        seen = Groups()
        fit(tmp_path, PolicyTrim(extend_iterations=9, horizon_baseline=baseline, **BOTH), seen, iterations=6)
        groups = [group for groups in seen.groups for group in groups]
        throughout = [g for g in groups if g.successes == len(g.trajectories)]
        assert throughout
        assert any(t.advantage for g in groups if g.mixed for t in g.trajectories)
        learnt = {bool(t.advantage) for g in throughout for t in g.trajectories}
        assert learnt == ({False} if baseline == "factorised" else {True})


def test_factorised_advantages_are_trained_on(tmp_path):
    seen = Groups()
    fit(tmp_path, PolicyTrim(extend_iterations=1, beta=1.0, horizon_baseline="factorised", **BOTH), seen, iterations=1)
    group = next(g for g in seen.groups[0] if g.mixed)
    for t in group.trajectories:
        others = (group.successes - t.success) / 4
        assert t.advantage == pytest.approx((1 + t.episode.window / 2) * (t.success - others))


# --------------------------------------------------------------------------------------------------------- stage 2


def test_stage_2_alone_runs_the_whole_chunk_and_rewards_saved_steps(tmp_path):
    seen, trim = Groups(), PolicyTrim(penalty=0.0, step_coef=1.0, baseline_episodes=4)
    fit(tmp_path, trim, seen)
    assert {t.episode.window for t in seen.trajectories} == {2}
    assert len({t.reward for t in seen.trajectories if t.success}) > 2
    for t in seen.trajectories:
        base = trim.baseline.steps[t.episode.task]
        assert t.reward == pytest.approx(t.success * (1 + max(0.0, base - t.steps) / base))


def test_the_penalty_is_taken_off(tmp_path):
    seen, trim = Groups(), PolicyTrim(preset="release_oft", sigma_floor="clamp", baseline_episodes=4)
    fit(tmp_path, trim, seen, iterations=1)
    group = next(
        g for g in seen.groups[0] if g.successes > 1 and len({t.steps for t in g.trajectories if t.success}) > 1
    )
    own = torch.tensor([float(t.steps) for t in group.trajectories if t.success])
    for t in (t for t in group.trajectories if t.success):
        base = trim.baseline.steps[t.episode.task]
        penalty = 0.2 * torch.tanh((t.steps - own.mean()).abs() / 5.0)  # the toy's steps differ by less than the floor
        assert t.reward == pytest.approx(1 + 0.8 * max(0.0, base - t.steps) / base - float(penalty), abs=1e-6)


def test_groups_that_succeed_throughout_are_trained_on(tmp_path):
    """Their shaped rewards have a spread, and the group filter looks at that."""
    seen = Groups()
    fit(tmp_path, PolicyTrim(baseline_episodes=4), seen, iterations=8)
    trained = {t.episode.uid for batch in seen.batches if batch.token_mask_NLA.any() for t in batch.trajectories}
    throughout = [g for gs in seen.groups for g in gs if g.successes == len(g.trajectories)]
    steady = [g for g in throughout if len({t.steps for t in g.trajectories}) == 1]
    moving = [g for g in throughout if g not in steady]
    assert moving
    assert all({t.episode.uid for t in g.trajectories} <= trained for g in moving)
    assert not any(t.episode.uid in trained for g in steady for t in g.trajectories)


def test_s_base_is_measured_once_by_the_initial_policy_at_the_base_window(tmp_path, capsys):
    pool, trim = ToyPool(), PolicyTrim(extend_iterations=1, **BOTH)
    fit(tmp_path, trim, pool=pool, iterations=2)
    first = pool.started[:8]  # 4 episodes of each of 2 tasks, and only once
    assert {e.window for e in first} == {1}
    assert len(pool.started) == 8 + 2 * 20
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in printed[:2]] == [
        f"task {task}: {n} of 4 succeed before training" for task, n in ((0, 3), (1, 3))
    ]
    assert trim.baseline.steps.keys() == {0, 1}
    assert all(5 < s <= 1.3 * 12 for s in trim.baseline.steps.values())


def test_without_a_success_the_longest_episode_is_the_baseline(tmp_path):
    class Helpless(ToyPolicy):
        def act(self, *args):
            chunk = super().act(*args)
            chunk.command_NLA = -torch.ones_like(chunk.command_NLA)
            return chunk

    trim, data = PolicyTrim(baseline_episodes=2), None
    policy = Helpless()
    data = RolloutDataModule(
        ToyPool(), policy, rollout=RolloutConfig(groups=1, group_size=2), grpo=GRPOConfig(minibatches=1),
        evaluation=EvaluationConfig(), seed=3,
    )  # fmt: skip
    module = GRPOModule(policy, data.grpo, OptimConfig(), 1.0)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, reload_dataloaders_every_n_epochs=1, use_distributed_sampler=False,
        num_sanity_val_steps=0, enable_model_summary=False, limit_val_batches=0, callbacks=[trim],
        default_root_dir=tmp_path, **options,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="skipped"):
        trainer.fit(module, datamodule=data)
    assert trim.baseline.steps == {0: 12.0, 1: 12.0}


# ------------------------------------------------------------------------------------------------------ the machine


def test_stage_2_begins_after_n_iterations_with_the_widest_window(tmp_path, capsys):
    seen, trim = Groups(), PolicyTrim(extend_iterations=2, switch_margin=None, **BOTH)
    fit(tmp_path, trim, seen, iterations=4)
    assert [row["policytrim/stage"] for row in rows(tmp_path)] == [1, 1, 2, 2]
    windows = [{t.episode.window for group in groups for t in group.trajectories} for groups in seen.groups]
    assert windows == [{1, 2}, {1, 2}, {2}, {2}]
    assert "stage 2 after 2 iterations of stage 1: windows of 2 steps" in capsys.readouterr().out


def test_stage_1_ends_when_the_widest_window_has_caught_up(tmp_path):
    trim = PolicyTrim(extend_iterations=9, switch_iterations=2, switch_margin=1.0, **BOTH)
    fit(tmp_path, trim, iterations=4)
    assert trim.extended == 2
    assert trim.trimming


@pytest.mark.parametrize("stop", [1, 3])  # in stage 1, in stage 2
def test_a_resumed_run_is_the_same_run(tmp_path, stop):
    options = dict(extend_iterations=2, switch_margin=None, kl_coef=0.5, **BOTH)
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    uninterrupted = PolicyTrim(**options)
    expected = fit(whole, uninterrupted, PCM(budget=2), iterations=5, save=True)
    fit(first, PolicyTrim(**options), PCM(budget=2), iterations=stop, save=True)
    pool, resumed = ToyPool(), PolicyTrim(**options)
    found = fit(second, resumed, PCM(budget=2), iterations=5, pool=pool, resume=first / "last.ckpt", save=True)
    assert len(pool.started) == (5 - stop) * 20  # S_base is not measured again
    assert torch.equal(weights(found), weights(expected))
    assert rows(second) == rows(whole)
    one, other = resumed.state_dict(), uninterrupted.state_dict()
    assert one.pop("reference").keys() == other.pop("reference").keys() != set()
    assert one == other
    for name, value in uninterrupted.reference.weights.items():
        assert torch.equal(resumed.reference.weights[name], value)


def test_without_coefficients_it_is_the_main_job_bit_for_bit(tmp_path):
    plain = fit(tmp_path / "plain", iterations=4)
    trimmed = fit(tmp_path / "trimmed", PolicyTrim(step_coef=0.0, penalty=0.0, baseline_episodes=4), iterations=4)
    assert torch.equal(weights(trimmed), weights(plain))
    assert not torch.equal(
        weights(plain), weights(fit(tmp_path / "shaped", PolicyTrim(baseline_episodes=4), iterations=4))
    )
    shared = [{k: v for k, v in row.items() if not k.startswith("policytrim/")} for row in rows(tmp_path / "trimmed")]
    assert shared == rows(tmp_path / "plain")


def test_no_reward_is_the_default_of_the_main_job_whatever_the_conf():
    conf = compose(["conf=pcm_object_tiny"])
    assert conf.reward is None
    assert compose(["conf=policytrim_object_tiny", "reward=none"]).reward is None
    both = compose(
        ["conf=pcm_policytrim_object_tiny", "reward=none", f"iterations={conf.iterations}", "sim=libero_object_tiny"]
    )
    both.conf, both.rollout, both.evaluation = conf.conf, conf.rollout, conf.evaluation
    assert both.callbacks.pop("trim_report")
    assert both == conf


# --------------------------------------------------------------------------------------------------- divergence


def test_divergence_from_the_start_of_the_stage_holds_back(tmp_path):
    seen, trim = Groups(), PolicyTrim(kl_coef=0.5, baseline_episodes=4)
    fit(tmp_path, trim, seen, iterations=3)
    kl = [row["policytrim/kl"] for row in rows(tmp_path)]
    assert kl[0] == pytest.approx(0, abs=1e-6)  # the policy is the reference
    assert kl[2] > 1e-4
    start = ToyPolicy()
    assert all(torch.equal(trim.reference.weights[n], p) for n, p in start.named_parameters())
    group = next(g for g in seen.groups[2] if g.has_spread)
    reward_G = group.reward_G
    usual_G = (reward_G - reward_G.mean()) / (reward_G.std(correction=0) + 1e-6)
    held_back_G = usual_G - torch.tensor([t.advantage for t in group.trajectories])
    kl_G = torch.tensor(trim._kl[: len(reward_G)])  # of the first group with a spread
    assert held_back_G.abs().max() > 1e-4
    torch.testing.assert_close(held_back_G, 0.5 * (kl_G - kl_G.mean()), atol=1e-5, rtol=0.0)


def test_the_policy_gets_its_own_weights_back(tmp_path):
    trim = PolicyTrim(kl_coef=0.5, baseline_episodes=4)
    policy = ToyPolicy()
    trim.reference.snapshot(policy)
    with torch.no_grad():
        policy.head.bias += 1.0
    own = [p.clone() for p in policy.parameters()]
    with pytest.raises(RuntimeError, match="inside"), trim.reference._in_place(policy):
        assert not policy.head.bias.any()
        raise RuntimeError("inside")
    assert all(torch.equal(p, o) for p, o in zip(policy.parameters(), own, strict=True))


# ------------------------------------------------------------------------------------------------ metrics and masks


def test_metrics_of_stage_2(tmp_path):
    seen, trim = Groups(), PolicyTrim(baseline_episodes=4)
    fit(tmp_path, trim, seen, iterations=1)
    row, trajectories = rows(tmp_path)[0], seen.trajectories
    successes = [t for t in trajectories if t.success]
    expected = {
        "stage": 2,
        "window": 2,
        "success/2": len(successes) / 20,
        "reward": sum(t.reward for t in trajectories) / 20,
        "calls": sum(len(t) for t in successes) / len(successes),
        "call_speedup": sum(trim.baseline.calls[t.episode.task] for t in successes) / sum(len(t) for t in successes),
        "all_success_groups": sum(g.successes == 5 for g in seen.groups[0]) / 4,
    }
    for name, value in expected.items():
        assert row[f"policytrim/{name}"] == pytest.approx(value, rel=1e-5), name
    assert row["policytrim/reward_without_penalty"] - row["policytrim/reward"] == pytest.approx(
        row["policytrim/penalty"] * len(successes) / 20, rel=1e-4
    )
    drift = []
    for g in (g for g in seen.groups[0] if g.successes > 1):
        a, s = torch.tensor([[t.advantage, t.steps] for t in g.trajectories if t.success]).T
        drift.append(float(((a - a.mean()) * (s - s.mean())).mean()))
    assert row["policytrim/step_drift"] == pytest.approx(sum(drift) / len(drift), rel=1e-4)


def test_metrics_of_stage_1(tmp_path):
    seen = Groups()
    fit(tmp_path, PolicyTrim(extend_iterations=1, **BOTH), seen, iterations=1)
    row = rows(tmp_path)[0]
    for window in (1, 2):
        own = [t.success for t in seen.trajectories if t.episode.window == window]
        assert row[f"policytrim/success/{window}"] == pytest.approx(sum(own) / len(own))
    mean = sum(t.episode.window for t in seen.trajectories) / 20
    assert row["policytrim/window"] == pytest.approx(mean)
    assert not {"policytrim/penalty", "policytrim/step_reward"} & row.keys()


def test_a_mask_sees_windows_of_executed_steps(tmp_path):
    """PCM beside PolicyTrim: phases are those of what was executed, and chunks are dropped as ever."""
    seen, mask = Groups(), PCM(budget=3)
    fit(tmp_path, mask, PolicyTrim(extend_iterations=1, **BOTH), seen, iterations=3)
    assert len(mask.history) == 3
    assert any(d == d for d in mask.history[0]["divergence"])
    kept = [batch.trajectory_N.bincount() for batch in seen.batches]
    assert max(int(count.max()) for count in kept) == 3
    t = next(t for t in seen.trajectories if t.episode.window == 1 and len(t) > 3)
    unexecuted = t.gripper_closed_NL.clone()
    unexecuted[:, 1:] = True  # what was not executed closes the gripper: it must not count
    before = trajectory_phases(t)
    t.gripper_closed_NL = unexecuted
    assert torch.equal(trajectory_phases(t), before)
