"""What the 7B model takes, counted on the meta device: memory plans of its presets, and arithmetic."""

import pytest
import torch

from vla_rl.config.compose import compose
from vla_rl.errors import UserError
from vla_rl.policy import memory
from vla_rl.policy.flops import update_flops
from vla_rl.policy.memory import plan_memory
from vla_rl.policy.memory_check import PRESETS, rows_that_fit
from vla_rl.policy.openvla_oft.config import PUBLISHED_7B, parse_config

pytestmark = pytest.mark.no_cover  # lines that others cover too, for every layer of a large model

CPU = torch.device("cpu")
ALL = {"r": 32, "alpha": 32}
BFLOAT16_7B = {"checkpoint": "random:7b", "dtype": "bfloat16"}
GB = 10**9


@pytest.fixture(autouse=True, scope="module")
def counted_once():
    """What autograd keeps of a row is counted once for each model that differs in it."""
    counted, count = {}, memory._activations

    def once(model, *, checkpointing):
        trained = tuple((name, p.shape, p.dtype) for name, p in model.named_parameters() if p.requires_grad)
        key = (repr(model.config), trained, model.projector.fc1.bias.dtype, checkpointing)
        if key not in counted:
            counted[key] = count(model, checkpointing=checkpointing)
        return counted[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_activations", once)
        yield


def test_the_7b_in_shards():
    """Whole at a time: two layers of 4 x 4096^2 + 3 x 4096 x 11008, embeddings and head of 32064 x 4096, the
    projector's 2176 x 8704 + 8704 x 4096 + 4096^2: 738 million parameters, 1.5 GB; the 15.0 GB are spread over 8."""
    made = plan_memory(BFLOAT16_7B | {"lora": ALL}, rows=12, optimizer="adamw", available=80 * GB, shards=8)
    assert made.weights / GB == pytest.approx(15.0 / 8 + 1.5, abs=0.05)


def plan(**options):
    return plan_memory(BFLOAT16_7B | options, rows=12, optimizer="adamw", available=80 * GB)


def test_the_7b_in_gigabytes():
    """7.5 billion parameters less what is never run, in bfloat16; 110 million of adapters in float32."""
    base = plan(lora=ALL)
    assert base.weights / GB == pytest.approx(15.0, abs=0.1)
    assert base.trainable / GB == pytest.approx(0.44, abs=0.01)
    # 32 layers of 4 x 4096^2 + 3 x 4096 x 11008 weights: 6.48 billion, 2 bytes each less .516 or 1.001
    halves = {"nf4": 15.0 - 6.48 * (2 - 0.516), "int8": 15.0 - 6.48 * (2 - 1.001)}
    for kind, expected in halves.items():
        assert plan(lora=ALL, quantization=kind).weights / GB == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("size", PRESETS)
def test_presets_fit_their_gpu_with_the_rows_they_find(size):
    config = compose(["conf=pcm_object", f"policy={PRESETS[size]}", "policy.checkpoint=random:7b"])
    assert config.grpo.micro_rows is None
    made = plan_memory(config.policy, rows=None, optimizer="adamw", available=size * GB)
    assert made.rows >= 12  # what a trajectory keeps: one micro-batch
    assert made.total <= size * GB
    assert made.rows == 64 or made.total + made.per_row > size * GB


def test_a_device_too_small_is_named_with_the_preset(monkeypatch, capsys):
    node = compose(["conf=pcm_object", "policy.checkpoint=random:7b"]).policy
    monkeypatch.setattr("vla_rl.policy.memory_check.slow_in_bfloat16", lambda: False)  # as a GPU is
    for available, rows, fix in (
        (40, 64, "grpo.micro_rows=21"),  # (40 - 18.2) / 1.015
        (26, 12, "grpo.micro_rows=7"),
    ):
        monkeypatch.setattr(
            "vla_rl.policy.memory_check.device_memory", lambda device, available=available: available * GB
        )
        with pytest.raises(UserError, match=f"memory plan in GB: .* but cpu has {available}.00: {fix}$"):
            rows_that_fit(node, rows=rows, optimizer="adamw", device=CPU)
    full = node | {"lora": None, "dtype": "float32"}
    for available, fix in (
        (60, "policy=openvla_oft_7b_48gb"),
        (30, "policy=openvla_oft_7b_24gb"),
        (8, "for a GPU of 24 GB"),
    ):
        monkeypatch.setattr(
            "vla_rl.policy.memory_check.device_memory", lambda device, available=available: available * GB
        )
        with pytest.raises(UserError, match=fix):
            rows_that_fit(full, rows=12, optimizer="adamw", device=CPU)
    assert "memory plan in GB: weights 15.00" in capsys.readouterr().out


def test_the_7b_on_the_meta_device():
    """345 rows of a sequence: about 5 TFLOP forward, and 10 with the backward of adapters."""
    forward, both = update_flops(parse_config(PUBLISHED_7B), 31, lora={"r": 32, "alpha": 32})
    assert forward == pytest.approx(5e12, rel=0.1)
    assert both == pytest.approx(10e12, rel=0.1)
