"""What an update of a flow policy takes of the memory, against real tensors."""

import pytest
import torch

from tests.helpers.flow import SETS, write_folder
from vla_rl.errors import UserError
from vla_rl.policy.activations import SavedBytes
from vla_rl.policy.flow import tiny
from vla_rl.policy.flow.load import build_policy, load_flow_policy
from vla_rl.policy.flow.memory import plan_flow_memory
from vla_rl.policy.flow.policy import Noise
from vla_rl.policy.memory_check import FLOW_POLICY, rows_that_fit
from vla_rl.types import ChunkBatch, Episode, Observation, Trajectory

pytestmark = pytest.mark.no_cover  # lines that others cover too, for every layer of large models

CPU = torch.device("cpu")
GB = 10**9


def plan(**options):
    return plan_flow_memory(options, rows=4, optimizer="adamw", available=80 * GB)


@pytest.mark.parametrize("options", [{"train": "all"}, {"dtype": "bfloat16"}, {"lora": {"r": 4, "alpha": 4}}])
@pytest.mark.parametrize("name", SETS)
def test_weights_are_what_they_are(tmp_path, name, options):
    options |= {"checkpoint": str(write_folder(tmp_path, name)), "noise": "learnt"}
    policy, made = load_flow_policy(**options), plan(**options)
    size = {trained: 0 for trained in (True, False)}
    for parameter in policy.parameters():
        size[parameter.requires_grad] += parameter.numel() * parameter.element_size()
    assert (made.weights, made.trainable, made.gradients) == (size[False], size[True], size[True])
    assert made.optimizer == 2 * size[True]


def test_activations_are_what_autograd_keeps():
    """The same count on real tensors, by torch's plain attention, which the meta device has."""
    policy = tiny.random_policy(Noise(joint=True))
    command = torch.rand(100, 7) * 2 - 1
    policy.fit_normalisation("made up", command, torch.rand(100, 8))
    frame, proprio, words = torch.zeros(1, 128, 128, 3, dtype=torch.uint8), torch.zeros(1, 8), "pick up the milk"
    chunk = policy.act(Observation(frame, proprio, [words]), [1], 1.0)
    executed = {"gripper_closed_NL": torch.zeros(1, 16, dtype=torch.bool), "executed_N": torch.tensor([16])}
    trajectory = Trajectory(
        Episode(0, 0, 0, 0), words, frame, proprio, chunk, **executed, success=True, reward=1.0
    )  # fmt: skip
    meter = SavedBytes(policy.model.parameters())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), meter.hooks():
        policy.log_prob(ChunkBatch.from_trajectories([trajectory]), 1.0)[0].sum()
    all_steps = {"checkpoint": None, "train": "all", "noisy_steps": "all"}
    assert plan(**all_steps).per_row == pytest.approx(1.1 * meter.peak, rel=0.1)


def test_what_makes_a_row_smaller():
    everything = {"checkpoint": None, "train": "all", "noisy_steps": "all"}
    whole = plan(**everything).per_row
    assert plan(**everything | {"noisy_steps": "one"}).per_row < whole
    assert plan(**everything | {"train": "expert"}).per_row < 0.7 * whole
    assert plan(**everything | {"gradient_checkpointing": True}).per_row < 0.7 * whole


def test_rows_are_found(capsys):
    node = {"_target_": FLOW_POLICY, "checkpoint": None}
    assert rows_that_fit(node, rows=7, optimizer="adamw", device=CPU) == 7
    assert rows_that_fit(node, rows=None, optimizer="adamw", device=CPU) == 64  # the most
    assert capsys.readouterr().out == ""  # not worth a line


def test_a_plan_that_does_not_fit_says_what_to_do(monkeypatch):
    node = {"_target_": FLOW_POLICY, "checkpoint": None, "train": "all"}
    for available, fix in ((1.6 * GB, "grpo.micro_rows="), (1.5 * GB, "policy.train=expert policy.dtype=bfloat16")):
        monkeypatch.setattr(
            "vla_rl.policy.memory_check.device_memory", lambda device, available=available: int(available)
        )
        with pytest.raises(UserError, match=f"memory plan in GB: .*: {fix}"):
            rows_that_fit(node, rows=10_000, optimizer="adamw", device=CPU)


# as saved, without the heads over the vocabulary, which nothing reads: two of pi0.5, one of SmolVLA
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("random:pi05", 4_143_404_816 - 257152 * (2048 + 1024)), ("random:smolvla", 450_046_176 - 49280 * 960)],
)
def test_random_weights_of_the_published_sizes_are_planned_without_being_made(name, parameters):
    policy = build_policy(name, weights=False)
    assert {p.device.type for p in policy.parameters()} == {"meta"}
    assert sum(p.numel() for p in policy.parameters()) == parameters
    assert (policy.images, policy.proprio_dims, policy.chunk_steps) == (2, 8, 50)


def test_four_bits_of_the_language_model_are_a_quarter_of_bfloat16():
    options = {"checkpoint": "random:pi05", "dtype": "bfloat16", "lora": {"r": 4, "alpha": 4}}
    policy = build_policy("random:pi05", weights=False)
    numbers = sum(p.numel() for n, p in policy.model.language.layers.named_parameters() if "_proj" in n)
    saved = plan(**options).weights - plan(**options | {"quantization": "nf4"}).weights
    assert saved == pytest.approx(numbers * (2 - 0.516), rel=1e-3)  # 4 bits and the scales
