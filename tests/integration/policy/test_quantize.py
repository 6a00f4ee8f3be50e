import importlib

import pytest
import torch

from tests.helpers.policies import batch_of, make_observation
from vla_rl.errors import UserError
from vla_rl.policy import load_policy, load_pretrained, save_trained
from vla_rl.policy.flow.load import load_flow_policy
from vla_rl.types import Observation

LORA = {"r": 4, "alpha": 8}


# Relative to the weights' size: NF4 leaves about 9% of noise in normal weights, int8 (of the row's largest) about 1%.
@pytest.mark.parametrize(("kind", "noise"), [("nf4", 0.12), ("int8", 0.02)])
def test_a_quantised_base_answers_nearly_the_same_and_its_adapters_learn(tiny_folder, tiny_policy, kind, noise):
    policy = load_policy(tiny_folder, lora=LORA, quantization=kind)
    layer = policy.model.language_model.model.layers[0].mlp.up_proj
    assert layer.base_layer.weight.dtype == {"nf4": torch.uint8, "int8": torch.int8}[kind]
    assert getattr(layer.base_layer.weight, "quant_type", kind) == kind  # 4 bits may also be plain floats
    x = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = tiny_policy.model.language_model.model.layers[0].mlp.up_proj(x)
        error = (layer(x) - exact).norm() / exact.norm()
    assert 1e-4 < error < noise
    observation = make_observation(2)
    chunk = policy.act(observation, [1, 2], temperature=1.0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    policy.log_prob(batch_of(observation, chunk), temperature=1.0)[0].sum().backward()
    trainable = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trainable)
    assert [n for n, p in trainable.items() if p.grad is None or not p.grad.any()] == []


def test_adapters_of_a_quantised_base_fit_the_plain_one(tiny_folder, tmp_path):
    policy = load_policy(tiny_folder, lora=LORA, quantization="nf4")
    save_trained(policy, tmp_path)
    load_policy(tiny_folder, lora=LORA, adapter=str(tmp_path))


def test_nf4_answers_the_same_in_train_and_eval_mode():
    """Rows of 352 weights, which are no whole number of blocks."""
    policy = load_policy("shipped:object_tiny", lora=LORA, quantization="nf4")
    frame = torch.arange(128 * 128 * 3, dtype=torch.uint8).reshape(1, 128, 128, 3)
    observation = Observation(frame, torch.zeros(1, 8), ["pick up the soup"])
    with torch.no_grad():
        answers = [mode().logits(observation) for mode in (policy.train, policy.eval, policy.train)]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_what_cannot_be(tiny_folder, monkeypatch):
    with pytest.raises(ValueError, match="no quantization named 'int3'.*nf4, int8 .policy.quantization="):
        load_policy(tiny_folder, lora=LORA, quantization="int3")
    with pytest.raises(ValueError, match="something else has to learn: policy.lora="):
        load_policy(tiny_folder, quantization="nf4")

    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match="needs bitsandbytes .*: pip install bitsandbytes, or"):
        load_policy(tiny_folder, lora=LORA, quantization="nf4")


def test_bfloat16_bases_have_float32_adapters_that_small_steps_move(tiny_folder):
    policy = load_policy(tiny_folder, lora=LORA, dtype="bfloat16")
    trainable = [p for p in policy.parameters() if p.requires_grad]
    assert {p.dtype for p in trainable} == {torch.float32}
    assert {p.dtype for p in policy.parameters() if not p.requires_grad and p.dim() > 1} == {torch.bfloat16}
    before = [p.detach().clone() for p in trainable]
    optimizer = torch.optim.AdamW(trainable, lr=1e-5, weight_decay=0.0)
    for p in trainable:
        p.grad = torch.ones_like(p)
    optimizer.step()
    # Adam's first step has the size of the learning rate; bfloat16 keeps steps of 1/256 of a value and more
    assert all(((p - b).abs() > 5e-6).all() for p, b in zip(trainable, before, strict=True))
    exact = load_pretrained(tiny_folder).logits(make_observation(2))
    rough = policy.logits(make_observation(2))
    assert (exact - rough).norm() / exact.norm() < 0.05


# ------------------------------------------------------------------------------------------------- cached features


def on_llama(**more):
    return LORA | {"targets": ["q_proj", "lm_head", "projector.fc1"]} | more


def test_features_are_computed_once_and_change_nothing(tiny_folder, monkeypatch):
    plain = load_policy(tiny_folder, lora=on_llama())
    cached = load_policy(tiny_folder, lora=on_llama(), vision_cache_rows=4)
    seen = []
    forward = cached.model.vision_backbone.forward
    monkeypatch.setattr(cached.model.vision_backbone, "forward", lambda x: (seen.append(len(x)), forward(x))[1])
    observation = make_observation(3)
    chunk = cached.act(observation, [1, 2, 3], temperature=1.0)
    assert torch.equal(chunk.drawn["token"], plain.act(observation, [1, 2, 3], temperature=1.0).drawn["token"])
    assert seen == [1, 1, 1]
    batch = batch_of(observation, chunk)
    one, other = (policy.log_prob(batch, temperature=1.0)[0] for policy in (cached, plain))
    assert seen == [1, 1, 1]
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)  # float32: the towers saw one row, or three
    one.sum().backward()
    assert any("projector.fc1" in n and p.grad is not None for n, p in cached.named_parameters())


def test_old_features_make_way(tiny_folder):
    policy = load_policy(tiny_folder, lora=on_llama(), vision_cache_rows=2)
    policy.act(make_observation(3), [0, 0, 0], temperature=0.0)
    assert len(policy.vision_cache._kept) == 2


def test_features_of_trained_towers_are_not_kept(tiny_folder):
    for lora in (None, LORA):
        with pytest.raises(ValueError, match=r"vision_cache_rows=0, or .*policy.lora.targets=\[q_proj,.*lm_head\]"):
            load_policy(tiny_folder, lora=lora, vision_cache_rows=4)


def test_the_language_model_of_a_flow_policy_in_four_bits_acts_and_its_adapters_learn(tmp_path):
    options = {"lora": LORA, "quantization": "nf4", "chunk_steps": 4}
    policy = load_flow_policy("shipped:object_flow_tiny", **options)
    layer = policy.model.language.layers[0]
    assert layer.mlp.up_proj.base_layer.weight.dtype == torch.uint8
    assert {p.dtype for p in policy.model.expert_parameters()} == {torch.float32}
    frame = torch.arange(128 * 128 * 3, dtype=torch.uint8).reshape(1, 128, 128, 3)
    observation = Observation(frame, torch.zeros(1, 8), ["pick up the milk and place it in the basket"])
    exact = load_flow_policy("shipped:object_flow_tiny", chunk_steps=4)
    quantised, plain = (p.act(observation, [1], 0.0).action_NLA for p in (policy, exact))
    assert 1e-5 < (quantised - plain).abs().mean() < 0.1
    chunk = policy.act(observation, [1], 1.0)
    policy.log_prob(batch_of(observation, chunk), 1.0)[0].sum().backward()
    learnt = [n for n, p in policy.named_parameters() if p.grad is not None and p.grad.any()]
    assert any("language_model" in name for name in learnt)
    assert all("lora_B" in name for name in learnt)
    save_trained(policy, tmp_path)
    load_flow_policy("shipped:object_flow_tiny", lora=LORA, adapter=str(tmp_path))


def test_a_flow_policy_in_four_bits_needs_adapters():
    with pytest.raises(UserError, match="so adapters have to learn, policy.lora="):
        load_flow_policy("shipped:object_flow_tiny", quantization="nf4")
