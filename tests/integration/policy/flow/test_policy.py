"""What a flow policy draws is what it is trained on."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tests.helpers.flow import SETS, observe, write_folder
from vla_rl.config.schema import GRPOConfig, OptimConfig
from vla_rl.errors import UserError
from vla_rl.functional.flow import times
from vla_rl.policy import load_policy, save_trained
from vla_rl.policy.flow.load import load_flow_policy
from vla_rl.training.grpo_module import GRPOModule
from vla_rl.types import ChunkBatch, Episode, Observation, Trajectory

STEPS = 4  # K


@pytest.fixture(params=SETS)
def policy(request, tmp_path):
    return load_flow_policy(str(write_folder(tmp_path, request.param)), denoising_steps=STEPS)


def batch_of(observation, chunk):
    """One decision per trajectory."""
    rows = len(chunk)
    trajectories = [
        Trajectory(
            episode=Episode(uid=n, task=0, init_state=0, seed=n),
            instruction=observation.instruction_N[n],
            frame_NHWC=observation.frame_NHWC[n : n + 1],
            proprio_NP=observation.proprio_NP[n : n + 1],
            actions=chunk.rows(slice(n, n + 1)),
            gripper_closed_NL=torch.zeros(1, chunk.logprob_NLA.shape[1], dtype=torch.bool),
            executed_N=torch.tensor([chunk.logprob_NLA.shape[1]]),
            success=True,
            reward=1.0,
        )
        for n in range(rows)
    ]
    return ChunkBatch.from_trajectories(trajectories)


def row(observation, n):
    return Observation(observation.frame_NHWC[[n]], observation.proprio_NP[[n]], [observation.instruction_N[n]])


def seeds_of_all_steps(policy):
    """A seed for each denoising step that may be the noisy one."""
    found = {}
    for seed in range(100):
        found.setdefault(int(policy._draw([seed])[2]), seed)
    return [found[k] for k in range(STEPS)]


def test_unchanged_weights_give_the_same_log_probability_for_every_step(policy):
    for k, seed in enumerate(seeds_of_all_steps(policy)):
        observation = observe(1)
        chunk = policy.act(observation, [seed], temperature=1.0)
        assert chunk.drawn["step"].tolist() == [[k]]
        logprob, entropy = policy.log_prob(batch_of(observation, chunk), temperature=1.0)
        assert torch.equal(logprob, chunk.logprob_NLA)  # to the bit: one row each
        assert torch.equal(entropy, chunk.entropy_NLA)


def test_rows_at_different_steps_are_scored_in_one_call(policy):
    observation, seeds = observe(2), seeds_of_all_steps(policy)[1:3]
    chunk = policy.act(observation, seeds, temperature=1.0)
    assert chunk.drawn["step"].tolist() == [[1], [2]]
    logprob, _ = policy.log_prob(batch_of(observation, chunk), temperature=1.0)
    assert_close(logprob, chunk.logprob_NLA, atol=1e-4, rtol=0)


def test_a_row_does_not_depend_on_the_others_or_on_threads(policy):
    observation = observe(2)
    both = policy.act(observation, [5, 6], temperature=1.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    alone = policy.act(row(observation, 1), [6], temperature=1.0)
    torch.set_num_threads(threads)
    assert torch.equal(alone.command_NLA, both.command_NLA[1:])
    assert torch.equal(alone.drawn["to"], both.drawn["to"][1:])


def test_greedy_is_eulers_chain_from_the_seeded_noise(policy):
    observation = observe(1)
    chunk = policy.act(observation, [3], temperature=0.0)
    x, inputs, t = policy._draw([3])[0], policy._inputs(observation), times(STEPS)
    with torch.no_grad():
        prefix = policy.model.prefix(inputs)
        for k in range(STEPS):
            x = x - (t[k] - t[k + 1]) * policy.model.velocity(prefix, x, t[[k]], inputs.state_ND)[0]
    assert torch.equal(chunk.action_NLA, x[..., :7])
    assert not torch.equal(policy.act(observation, [4], temperature=0.0).action_NLA, chunk.action_NLA)
    assert not policy.greedy_repeats


def test_temperature_scales_the_noise_of_one_step(policy):
    observation = observe(1)
    greedy, warm, hot = (policy.act(observation, [3], temperature=t) for t in (0.0, 0.5, 1.0))
    near, far = ((chunk.action_NLA - greedy.action_NLA).abs().mean() for chunk in (warm, hot))
    assert 0 < near < far
    # entropy of a normal distribution: half the standard deviation is log 2 nats less
    assert_close(hot.entropy_NLA - warm.entropy_NLA, torch.full_like(hot.entropy_NLA, 0.693147))


def test_the_rows_behind_the_executed_ones_and_padded_columns_are_not_scored(tmp_path):
    policy = load_flow_policy(str(write_folder(tmp_path, "pi05_tiny")), chunk_steps=3)
    chunk = policy.act(observe(2), [1, 2], temperature=1.0)
    assert chunk.logprob_NLA.shape == chunk.command_NLA.shape == (2, 3, 7)
    changed = {name: value.clone() for name, value in chunk.drawn.items()}
    changed["to"][:, :, 3:] += 1.0
    changed["to"][..., 7:] += 1.0
    batch = batch_of(observe(2), chunk)
    before, _ = policy.log_prob(batch, temperature=1.0)
    batch.actions.drawn = changed
    assert torch.equal(policy.log_prob(batch, temperature=1.0)[0], before)


def test_padded_columns_get_no_noise_on_the_way(policy):
    _, noise, _ = policy._draw([1])
    assert noise[..., :7].all()
    assert not noise[..., 7:].any()


def count_calls(monkeypatch, model):
    calls = {"prefix": 0, "velocity": 0}
    for name in calls:
        own = getattr(model, name)

        def counted(*args, name=name, own=own):
            calls[name] += 1
            return own(*args)

        monkeypatch.setattr(model, name, counted)
    return calls


def test_the_update_costs_one_prefix_and_one_suffix(policy, monkeypatch):
    observation = observe(2)
    chunk = policy.act(observation, [1, 2], temperature=1.0)
    calls = count_calls(monkeypatch, policy.model)
    policy.log_prob(batch_of(observation, chunk), temperature=1.0)[0].sum().backward()
    assert calls == {"prefix": 1, "velocity": 1}


def test_all_steps_noisy(policy, monkeypatch):
    """Each step is scored, for a forward of the expert each; the prefix is computed once."""
    policy.noise = replace(policy.noise, joint=True)
    observation = observe(1)
    chunk = policy.act(observation, [1], temperature=1.0)
    assert chunk.drawn["step"].tolist() == [[0, 1, 2, 3]]
    assert torch.equal(chunk.drawn["to"][:, :-1], chunk.drawn["from"][:, 1:])
    calls = count_calls(monkeypatch, policy.model)
    logprob, entropy = policy.log_prob(batch_of(observation, chunk), temperature=1.0)
    assert calls == {"prefix": 1, "velocity": STEPS}
    assert torch.equal(logprob, chunk.logprob_NLA)
    # standard deviations .5, .4330, .25, .1443: log of their product, and four times (1 + log 2 pi) / 2
    assert_close(entropy, torch.full_like(entropy, math.log(0.5 * 0.433013 * 0.25 * 0.144338) + 4 * 1.418939))


def test_the_frozen_prefix_gets_no_gradient_and_the_expert_all(policy):
    observation = observe(2)
    chunk = policy.act(observation, [1, 2], temperature=1.0)
    policy.log_prob(batch_of(observation, chunk), temperature=1.0)[0].sum().backward()
    expert = {id(p) for p in policy.model.expert_parameters()}
    for name, parameter in policy.model.named_parameters():
        assert parameter.requires_grad == (id(parameter) in expert), name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (id(parameter) in expert), name


@pytest.mark.parametrize("options", [{"train": "all"}, {"lora": {"r": 4, "alpha": 8}}], ids=["all", "adapters"])
@pytest.mark.parametrize("name", SETS)
def test_all_that_is_trained_gets_a_gradient(tmp_path, name, options):
    """Ranks that exchange gradients wait for each of them."""
    policy = load_flow_policy(str(write_folder(tmp_path, name)), **options)
    for parameter_name, parameter in policy.named_parameters():
        if "lora_B" in parameter_name and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    observation = observe(2)
    chunk = policy.act(observation, [1, 2], temperature=1.0)
    policy.log_prob(batch_of(observation, chunk), temperature=1.0)[0].sum().backward()
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert len(trained) > 40
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []


def test_extras(policy):
    observation = observe(2)
    policy.extras = frozenset({"score_sq", "hidden", "state"})
    chunk = policy.act(observation, [1, 2], temperature=1.0)
    assert chunk.extras["hidden"].shape == (2, 2 * policy.state_dims)
    assert torch.equal(chunk.extras["hidden"][:, : policy.state_dims], chunk.extras["state"])
    _, _, state = policy.log_prob_and_state(batch_of(observation, chunk), temperature=1.0)
    assert_close(state, chunk.extras["state"], atol=1e-4, rtol=1e-4)
    # the derivative by the velocity, by autograd
    inputs = policy._inputs(observation)
    velocity = policy._velocity(
        policy.model.prefix(inputs), chunk.drawn["from"][:, 0], chunk.drawn["step"][:, 0], inputs
    )
    velocity = velocity.detach()[:, None].requires_grad_()
    policy._score(chunk.drawn, velocity, 1.0)[0].sum().backward()
    assert_close(chunk.extras["score_sq"], velocity.grad[:, 0, :, :7].square(), atol=1e-3, rtol=1e-3)


def noised_again(policy, observation, *, joint):
    """Decisions with what `matching_loss` needs, in a batch; the policy has learnt since."""
    policy.noise, policy.extras = replace(policy.noise, joint=joint), frozenset({"matching"})
    batch = batch_of(observation, policy.act(observation, [1, 2], temperature=1.0))
    for parameter in policy.model.expert_parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    return batch


@pytest.mark.parametrize("joint", [False, True])
def test_nft_is_the_formula(policy, joint):
    """.5 (r E+ + (1 - r) E-), v+- = v_old +- (v - v_old), E+- = (x_t - t v+- - x_0)^2, r = clip(A, -.5, .5) + .5."""
    observation = observe(2)
    batch = noised_again(policy, observation, joint=joint)
    batch.advantage_N = advantage = torch.tensor([0.3, -2.0])
    weight = torch.rand(batch.actions.logprob_NLA.shape, generator=torch.Generator().manual_seed(0))
    module = GRPOModule(policy, GRPOConfig(loss="nft", entropy_coef=0.0), OptimConfig(), 1.0)
    loss, stats = module._loss(batch, weight)
    expert = list(policy.model.expert_parameters())
    gradient = torch.autograd.grad(loss, expert)

    x_t, old = (part[..., :7] for part in batch.actions.extras["matching"].unbind(1))
    inputs, x_0, terms = policy._inputs(observation), batch.actions.action_NLA, []
    prefix, share = policy.model.prefix(inputs), torch.tensor([0.8, 0.0])[:, None, None]
    for s in range(STEPS if joint else 1):
        t = 1 - batch.actions.drawn["step"][:, s] / STEPS
        v = policy.model.velocity(prefix, batch.actions.extras["matching"][:, 0, s], t, inputs.state_ND)[0][..., :7]
        errors = [
            (x_t[:, s] - t[:, None, None] * (old[:, s] + sign * (v - old[:, s])) - x_0).square() for sign in (1, -1)
        ]
        terms.append(0.5 * (share * errors[0] + (1 - share) * errors[1]))
    written = (weight * sum(terms) / len(terms)).sum()
    assert_close(loss, written)
    for one, other in zip(gradient, torch.autograd.grad(written, expert), strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert any(one.abs().max() > 1e-3 for one in gradient)
    assert stats["velocity_change_abs"] > 1e-3
    batch.advantage_N = advantage[:, None].expand(-1, policy.chunk_steps)
    assert torch.equal(module._loss(batch, weight)[0], loss)


def test_nft_noises_the_chunk_that_was_made(policy):
    """x_t = t e + (1 - t) x_0: with the noises taken out, the same chunk at all times; unchanged weights, no change."""
    policy.noise, policy.extras = replace(policy.noise, joint=True), frozenset({"matching"})
    observation = observe(1)
    chunk = policy.act(observation, [5], temperature=1.0)
    x_t = chunk.extras["matching"][0, 0, :, :, :7]
    shape = (STEPS, policy.chunk_steps, policy.model.config.action_width)
    noise = torch.from_numpy(np.random.default_rng((5, 1)).standard_normal(shape)).float()
    for s in range(STEPS):
        t = 1 - s / STEPS
        assert_close(x_t[s], t * noise[s, :, :7] + (1 - t) * chunk.action_NLA[0])
    _, change = policy.matching_loss(batch_of(observation, chunk), torch.ones(1))
    assert not change.any()  # to the bit: one row each
    policy.extras = frozenset()  # the draws of the decision itself are those without it
    assert torch.equal(policy.act(observation, [5], temperature=1.0).action_NLA, chunk.action_NLA)


def test_imitation_is_flow_matching(policy):
    observation = observe(2)
    command = torch.rand(2, policy.chunk_steps, 7) - 0.5
    losses = [policy.imitation_loss(observation, command, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    losses[0].backward()
    assert policy.model.action_in_proj.weight.grad.any()


def test_a_part_of_the_chunk_is_not_imitated(tmp_path):
    policy = load_flow_policy(str(write_folder(tmp_path, "pi05_tiny")), chunk_steps=3)
    with pytest.raises(UserError, match="needs the model's whole chunk of 10 steps.*policy.chunk_steps=null"):
        policy.imitation_loss(observe(2), torch.zeros(2, 3, 7), torch.Generator())


def test_adapters(tmp_path):
    folder, lora = str(write_folder(tmp_path / "a", "smolvla_tiny")), {"r": 4, "alpha": 8}
    policy = load_flow_policy(folder, lora=lora)
    for name, parameter in policy.named_parameters():
        assert not parameter.requires_grad or "lora_" in name
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    save_trained(policy, tmp_path / "adapter")
    again = load_flow_policy(folder, lora=lora, adapter=str(tmp_path / "adapter"))
    one, other = (p.act(observe(), [1, 2], temperature=1.0) for p in (policy, again))
    assert torch.equal(one.command_NLA, other.command_NLA)
    assert not torch.equal(
        load_flow_policy(folder).act(observe(), [1, 2], temperature=1.0).command_NLA, one.command_NLA
    )


def test_an_entropy_bonus_is_refused(tmp_path):
    policy = load_flow_policy(str(write_folder(tmp_path, "pi05_tiny")))
    with pytest.raises(UserError, match="grpo.entropy_coef=0"):
        GRPOModule(policy, GRPOConfig(), OptimConfig(), 1.0)
    GRPOModule(policy, GRPOConfig(entropy_coef=0.0), OptimConfig(), 1.0)


def test_nft_of_a_policy_of_tokens_is_refused():
    with pytest.raises(UserError, match="grpo.loss=nft is of flow policies .*: grpo.loss=clipped"):
        GRPOModule(load_policy(None), GRPOConfig(loss="nft", entropy_coef=0.0), OptimConfig(), 1.0)


@pytest.mark.parametrize("noisy_steps", ["one", "all"])
@pytest.mark.parametrize("name", SETS)
def test_learnt_noise(tmp_path, name, noisy_steps):
    """Normal around Euler's step; the deviation lies between its bounds, differs from number to number, and learns."""
    folder = str(write_folder(tmp_path, name))
    policy = load_flow_policy(folder, noise="learnt", noisy_steps=noisy_steps, denoising_steps=STEPS)
    observation, scored = observe(1), STEPS if noisy_steps == "all" else 1
    untouched = policy.act(observation, [1], temperature=1.0)
    # std sqrt(.08 * .16) everywhere: log of it, and (1 + log 2 pi) / 2, for each noisy step
    expected = scored * (math.log(0.113137) + 1.418939)
    assert_close(untouched.entropy_NLA, torch.full_like(untouched.entropy_NLA, expected))
    torch.nn.init.normal_(policy.noise_std.weight, generator=torch.Generator().manual_seed(0))
    chunk = policy.act(observation, [1], temperature=1.5)
    per_step = chunk.entropy_NLA / scored - 1.418939 - math.log(1.5)
    assert math.log(0.08) - 1e-5 < per_step.min() < per_step.max() - 0.01 < math.log(0.16)
    batch = batch_of(observation, chunk)
    logprob, entropy = policy.log_prob(batch, temperature=1.5)
    assert torch.equal(logprob, chunk.logprob_NLA)  # to the bit: one row each
    assert torch.equal(entropy, chunk.entropy_NLA)
    x, inputs = chunk.drawn["from"][:, 0], policy._inputs(observation)
    t = 1 - chunk.drawn["step"][:, 0] / STEPS
    velocity, hidden = policy.model.velocity(policy.model.prefix(inputs), x, t, inputs.state_ND)
    std = 1.5 * 0.08 * 2 ** ((1 + policy.noise_std(hidden).tanh()) / 2)
    written = torch.distributions.Normal(x - velocity / STEPS, std).log_prob(chunk.drawn["to"][:, 0])[..., :7]
    if scored == 1:
        assert_close(logprob, written, atol=1e-3, rtol=1e-4)
    logprob.sum().backward()
    assert policy.noise_std.weight.grad[:7].any(1).all()
    assert not policy.noise_std.weight.grad[7:].any()  # padded columns get no noise
    of_schedule = load_flow_policy(folder, denoising_steps=STEPS)
    greedy = [p.act(observation, [1], temperature=0.0).action_NLA for p in (policy, of_schedule)]
    assert torch.equal(*greedy)


@pytest.mark.parametrize("lora", [None, {"r": 4, "alpha": 8}])
def test_learnt_noise_is_saved_and_loaded(tmp_path, lora):
    folder = str(write_folder(tmp_path / "a", "pi05_tiny"))
    policy = load_flow_policy(folder, noise="learnt", lora=lora)
    torch.nn.init.normal_(policy.noise_std.weight, generator=torch.Generator().manual_seed(0))
    save_trained(policy, tmp_path / "b")
    where = {"checkpoint": folder, "adapter": str(tmp_path / "b")} if lora else {"checkpoint": str(tmp_path / "b")}
    again = load_flow_policy(**where, noise="learnt", lora=lora)
    one, other = (p.act(observe(1), [1], temperature=1.0) for p in (policy, again))
    assert torch.equal(one.logprob_NLA, other.logprob_NLA)
    assert torch.equal(one.drawn["to"], other.drawn["to"])
    with pytest.warns(
        UserWarning, match=r"b has learnt noise \(noise_std.safetensors\), which policy.noise=sde leaves out"
    ):
        load_flow_policy(**where, lora=lora)  # as a policy whose noise is a schedule


def test_what_learnt_noise_refuses(tmp_path):
    folder = str(write_folder(tmp_path, "pi05_tiny"))
    with pytest.raises(UserError, match="policy.noise_level=0.3 would do nothing: policy.noise_level=null"):
        load_flow_policy(folder, noise="learnt", noise_level=0.3)
    policy = load_flow_policy(folder, noise="learnt")
    with pytest.raises(UserError, match="policy.noise=sde"):
        policy.imitation_loss(observe(1), torch.zeros(1, 10, 7), torch.Generator())
    with pytest.raises(UserError, match="grpo.loss=clipped"):
        GRPOModule(policy, GRPOConfig(loss="nft", entropy_coef=0.0), OptimConfig(), 1.0)
    GRPOModule(policy, GRPOConfig(), OptimConfig(), 1.0)  # its entropy is learnt


@pytest.mark.parametrize("lora", [None, {"r": 4, "alpha": 8}])
@pytest.mark.parametrize("name", SETS)
def test_half_precision_of_the_frozen_part(tmp_path, name, lora):
    policy = load_flow_policy(str(write_folder(tmp_path, name)), dtype="bfloat16", lora=lora, denoising_steps=STEPS)
    dtypes = {p.requires_grad: p.dtype for p in policy.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    observation = observe(1)
    chunk = policy.act(observation, [1], temperature=1.0)
    logprob, _ = policy.log_prob(batch_of(observation, chunk), temperature=1.0)
    assert torch.equal(logprob, chunk.logprob_NLA)
    assert logprob.dtype == torch.float32
