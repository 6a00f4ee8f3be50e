"""The L1 variant: released files load strictly, evaluate as released, and are stochastic for reinforcement learning."""

import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tests.helpers.policies import INSTRUCTIONS, batch_of, row
from vla_rl.errors import UserError
from vla_rl.policy import load_policy, load_pretrained, save_trained
from vla_rl.policy.openvla_oft.action_head import (
    laplace_entropy,
    laplace_log_prob,
    laplace_quantile,
)
from vla_rl.policy.openvla_oft.config import parse_config
from vla_rl.policy.openvla_oft.merge import merge_adapter
from vla_rl.policy.openvla_oft.model import OpenVLAOFT
from vla_rl.policy.openvla_oft.tiny import tiny_config
from vla_rl.policy.openvla_oft.vision import unused_shapes
from vla_rl.types import Observation, Policy

WIDTH = 128
HEAD, PROPRIO = "action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"


def random_tensors(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def head_shapes():
    """The released head, written down: two residual blocks, 7 slots of a control step at a time."""
    shapes = {"layer_norm1.weight": [7 * WIDTH], "layer_norm1.bias": [7 * WIDTH]}
    shapes |= {"fc1.weight": [WIDTH, 7 * WIDTH], "fc1.bias": [WIDTH]}
    for block in ("mlp_resnet_blocks.0.ffn", "mlp_resnet_blocks.1.ffn"):
        shapes |= {f"{block}.0.weight": [WIDTH], f"{block}.0.bias": [WIDTH]}
        shapes |= {f"{block}.1.weight": [WIDTH, WIDTH], f"{block}.1.bias": [WIDTH]}
    shapes |= {"layer_norm2.weight": [WIDTH], "layer_norm2.bias": [WIDTH], "fc2.weight": [7, WIDTH], "fc2.bias": [7]}
    return {f"module.model.{name}": shape for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def folder(tiny_policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("l1")
    raw = tiny_config()
    del raw["use_proprio"]  # released configs do not say what they read
    config = parse_config(raw)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in OpenVLAOFT(config).state_dict().items()}
    save_file(random_tensors(shapes | unused_shapes(config.towers), 1), folder / "model.safetensors")
    torch.save(random_tensors(head_shapes(), 2), folder / HEAD)
    shapes = {"fc1.weight": [WIDTH, 8], "fc1.bias": [WIDTH], "fc2.weight": [WIDTH, WIDTH], "fc2.bias": [WIDTH]}
    torch.save(random_tensors({f"module.{name}": shape for name, shape in shapes.items()}, 3), folder / PROPRIO)
    content = {
        "config.json": raw,
        "preprocessor_config.json": tiny_policy.files.preprocessor,
        "dataset_statistics.json": tiny_policy.statistics.content,
    }
    for name, value in content.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "tokenizer.json").write_text(tiny_policy.files.tokenizer)
    return folder


@pytest.fixture(scope="module")
def policy(folder):
    return load_pretrained(folder, action_head="l1")


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def observe(rows):
    generator = torch.Generator().manual_seed(rows)
    frame_NHWC = torch.randint(0, 256, (rows, 128, 128, 6), dtype=torch.uint8, generator=generator)
    return Observation(frame_NHWC, torch.randn(rows, 8, generator=generator), list(INSTRUCTIONS[:rows]))


def test_the_distributions_formulas_by_hand():
    value, mean, scale = torch.tensor(0.3), torch.tensor(0.1), torch.tensor(0.2)
    # -|.3 - .1| / .2 - log(.4) = -1 + .91629
    assert laplace_log_prob(value, mean, scale).item() == pytest.approx(-0.08371, abs=1e-5)
    assert laplace_entropy(scale).item() == pytest.approx(1 + math.log(0.4), abs=1e-6)
    # the median is the mean; a quarter lies below mu - b log 2
    quantiles = laplace_quantile(torch.tensor([0.5, 0.25, 0.75]), mean, scale)
    torch.testing.assert_close(quantiles, torch.tensor([0.1, 0.1 - 0.2 * math.log(2), 0.1 + 0.2 * math.log(2)]))


@torch.no_grad()
def test_the_released_head_on_the_slots_hidden_states(policy, folder):
    observation = observe(2)
    hidden, _ = policy.hidden(observation)
    assert hidden.shape == (2, 56, WIDTH)
    w = {k.removeprefix("module.model."): v for k, v in torch.load(folder / HEAD, weights_only=True).items()}
    x = hidden.reshape(2, 8, 7 * WIDTH)
    x = F.layer_norm(x, [7 * WIDTH], w["layer_norm1.weight"], w["layer_norm1.bias"])
    x = F.relu(x @ w["fc1.weight"].T + w["fc1.bias"])
    for block in ("mlp_resnet_blocks.0.ffn", "mlp_resnet_blocks.1.ffn"):
        y = F.layer_norm(x, [WIDTH], w[f"{block}.0.weight"], w[f"{block}.0.bias"])
        x = x + F.relu(y @ w[f"{block}.1.weight"].T + w[f"{block}.1.bias"])
    expected = F.layer_norm(x, [WIDTH], w["layer_norm2.weight"], w["layer_norm2.bias"]) @ w["fc2.weight"].T
    expected += w["fc2.bias"]
    chunk = policy.act(observation, [0, 0], temperature=0.0)
    assert torch.equal(chunk.action_NLA, chunk.drawn["value"].clip(-1, 1))
    torch.testing.assert_close(chunk.drawn["value"], expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_it_reads_both_images_and_the_proprioception(policy):
    observation = observe(1)
    before = policy.distribution(observation)
    for change in ("outside", "wrist", "proprio"):
        frame, proprio = observation.frame_NHWC.clone(), observation.proprio_NP.clone()
        if change == "proprio":
            proprio += 0.5
        else:
            frame[..., {"outside": slice(0, 3), "wrist": slice(3, 6)}[change]] += 100
        assert (policy.distribution(Observation(frame, proprio, observation.instruction_N)) - before).abs().max() > 1e-4


def test_images_are_normalised_one_by_one(policy):
    frame = observe(1).frame_NHWC
    both = policy.pixels(frame, torch.float32)
    one, other = (policy.pixels(frame[..., first : first + 3], torch.float32) for first in (0, 3))
    assert torch.equal(both, torch.cat([one, other], dim=1))


def test_it_is_a_policy_whose_log_prob_agrees_with_act(policy):
    assert isinstance(policy, Policy)
    assert policy.images == 2
    observation = observe(3)
    chunk = policy.act(observation, [1, 2, 3], temperature=1.6)
    logprob_NLA, entropy_NLA = policy.log_prob(batch_of(observation, chunk), temperature=1.6)
    # float32 noise of the mean, divided by a scale of .08
    torch.testing.assert_close(logprob_NLA, chunk.logprob_NLA, atol=1e-3, rtol=0)
    assert entropy_NLA.flatten().tolist() == pytest.approx([1 + math.log(2 * 1.6 * 0.05)] * 168, abs=1e-4)
    alone = policy.act(row(observation, 1), [2], temperature=1.6)
    assert torch.equal(alone.drawn["value"], chunk.drawn["value"][1:2])
    greedy = policy.act(observation, [1, 2, 3], temperature=0.0)
    # 168 draws from a Laplace of scale .08 lie .08 from its mean on average, give or take .02
    distance = (chunk.drawn["value"] - greedy.drawn["value"]).abs().mean()
    assert 0.06 < distance < 0.10


def test_a_value_head_reads_the_same_state_in_rollouts_and_training(policy, monkeypatch):
    observation = observe(2)
    monkeypatch.setattr(policy, "extras", frozenset({"state"}))
    chunk = policy.act(observation, [1, 2], temperature=1.6)
    _, _, state_ND = policy.log_prob_and_state(batch_of(observation, chunk), temperature=1.6)
    assert state_ND.shape == (2, policy.state_dims) and state_ND.requires_grad
    torch.testing.assert_close(state_ND, chunk.extras["state"], atol=1e-4, rtol=1e-4)


def test_with_adapters_the_head_stays_and_the_scale_learns(folder, tmp_path):
    lora = {"r": 4, "alpha": 8}
    policy = load_policy(str(folder), action_head="l1", lora=lora)
    observation = observe(2)
    chunk = policy.act(observation, [1, 2], temperature=1.0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name or name == "scale.fc.weight":
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    policy.log_prob(batch_of(observation, chunk), temperature=1.0)[0].sum().backward()
    trainable = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    assert {n for n in trainable if "lora_" not in n} == {f"scale.{n}" for n, _ in policy.scale.named_parameters()}
    assert [n for n, p in trainable.items() if p.grad is None or not p.grad.any()] == []
    save_trained(policy, tmp_path)
    again = load_policy(str(folder), action_head="l1", lora=lora, adapter=str(tmp_path))
    assert torch.equal(again.distribution(observation), policy.distribution(observation))
    merge_adapter(folder, tmp_path, tmp_path / "merged")
    merged = load_pretrained(tmp_path / "merged", action_head="l1")
    # float32 rounding of W x + B A x against (W + B A) x
    torch.testing.assert_close(merged.distribution(observation), policy.distribution(observation), atol=1e-4, rtol=0)


def test_without_adapters_everything_that_is_read_learns(folder):
    policy = load_policy(str(folder), action_head="l1")
    policy.scale.fc.weight.data.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.01)
    observation = observe(2)
    chunk = policy.act(observation, [1, 2], temperature=1.0)
    policy.log_prob(batch_of(observation, chunk), temperature=1.0)[0].sum().backward()
    trainable = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    assert "model.language_model.lm_head.weight" not in trainable
    assert [n for n, p in trainable.items() if p.grad is None or not p.grad.any()] == []


def test_a_saved_checkpoint_has_the_released_files(policy, folder, tmp_path):
    save_trained(policy, tmp_path)
    names = {f.name for f in folder.iterdir()} | {"laplace_scale.safetensors"}
    assert {f.name for f in tmp_path.iterdir()} == names
    for name in (HEAD, PROPRIO):
        before, after = (torch.load(f / name, weights_only=True) for f in (folder, tmp_path))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before)
    again = load_pretrained(tmp_path, action_head="l1")
    assert torch.equal(again.distribution(observe(1)), policy.distribution(observe(1)))


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_files_that_do_not_fit(copy, capsys):
    load = lambda: load_pretrained(copy, action_head="l1")  # noqa: E731
    tensors = torch.load(copy / HEAD, weights_only=True)
    bias = "module.model.fc2.bias"
    torch.save({k: v for k, v in tensors.items() if k != bias}, copy / HEAD)
    with pytest.raises(ValueError, match=f"{HEAD}: tensor 'model.fc2.bias' is missing"):
        load()
    torch.save(tensors | {"module.model.fc3.bias": tensors[bias]}, copy / HEAD)
    with pytest.raises(ValueError, match="tensor 'model.fc3.bias' is not expected"):
        load()
    torch.save(tensors | {bias: tensors[bias][:-1]}, copy / HEAD)
    with pytest.raises(ValueError, match=r"'model.fc2.bias' has shape \[6\], expected \[7\]"):
        load()
    torch.save(tensors | {"model.fc2.bias": tensors[bias] + 1}, copy / HEAD)
    with pytest.raises(ValueError, match=f"{HEAD} holds the tensor 'model.fc2.bias' twice, once behind 'module.'"):
        load()
    torch.save(tensors | {bias: Evil()}, copy / HEAD)
    with pytest.raises(ValueError, match="damaged or is no file of weights"):
        load()
    assert "executed" not in capsys.readouterr().out
    (copy / HEAD).write_bytes((copy / PROPRIO).read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged or is no file of weights"):
        load()
    (copy / HEAD).unlink()
    with pytest.raises(ValueError, match="must have one action_head--.* for its L1 head, found none"):
        load()


def test_it_imitates_by_the_l1_loss_of_its_head(policy):
    observation = observe(2)
    command_NLA = policy.act(observation, [1, 2], temperature=1.0).command_NLA
    generator = torch.Generator()
    loss = policy.imitation_loss(observation, command_NLA, generator)
    mean_NLA = policy.distribution(observation)[..., 0]
    torch.testing.assert_close(loss, (mean_NLA - policy.normalised(command_NLA)).abs().mean(), check_dtype=False)
    loss.backward()
    assert policy.head.model.fc2.bias.grad.any()
    assert not policy.scale.fc.bias.grad.any()
    policy.zero_grad()


def test_a_command_is_normalised_to_the_action_it_came_from(policy):
    chunk = policy.act(observe(2), [1, 2], temperature=0.0)
    inside = chunk.command_NLA.abs() < 1  # the others were clipped
    inside[..., -1] = False  # the gripper opens or closes
    assert inside.any()
    again = policy.normalised(chunk.command_NLA)
    torch.testing.assert_close(again[inside].float(), chunk.drawn["value"][inside], atol=1e-4, rtol=0)


def test_mistakes(policy, folder):
    with pytest.raises(ValueError, match="policy.action_head=l1 sim.wrist_camera=true"):
        load_pretrained(folder)
    with pytest.raises(ValueError, match="no action_head named 'l2'. Choices: tokens, l1"):
        load_pretrained(folder, action_head="l2")
    with pytest.raises(UserError, match="no action tokens"):
        policy.logits(observe(1))


@pytest.mark.parametrize("checkpoint", [None, "random:7b"])
def test_random_weights_have_no_l1_head(checkpoint):
    with pytest.raises(UserError, match="^random weights have action tokens, .* policy.action_head=tokens, or"):
        load_policy(checkpoint, action_head="l1")


@pytest.mark.parametrize(
    ("targets", "left"),
    [
        (["q_proj", "lm_head"], "q_proj"),
        (["language_model.lm_head"], "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"),
    ],
)
def test_an_adapter_that_would_learn_nothing_is_refused(folder, targets, left):
    lora = {"r": 4, "alpha": 4, "targets": targets}
    with pytest.raises(UserError, match=f"does not read the output head, .* policy.lora.targets=\\[{left}\\]$"):
        load_policy(str(folder), action_head="l1", lora=lora)
    with pytest.raises(UserError, match=r"cannot be kept: .* policy.lora.targets=\[q_proj,.*,down_proj\]$"):
        load_policy(str(folder), action_head="l1", vision_cache_rows=8)
