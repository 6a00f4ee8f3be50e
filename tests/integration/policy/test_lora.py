import peft
import pytest
import torch

from tests.helpers.policies import make_observation
from vla_rl.policy import load_policy, save_trained

LORA = {"r": 4, "alpha": 8}


def with_random_adapters(tiny_folder):
    """Adapters as if trained: freshly made, their second factor is zero."""
    policy = load_policy(tiny_folder, lora=LORA)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return policy


def test_fresh_adapters_change_nothing(tiny_folder, tiny_policy):
    policy = load_policy(tiny_folder, lora=LORA)
    observation = make_observation(2)
    assert torch.equal(policy.logits(observation), tiny_policy.logits(observation))


def test_adapters_are_all_that_trains_and_all_of_them_do(tiny_folder):
    policy = with_random_adapters(tiny_folder)
    trainable = {name for name, p in policy.named_parameters() if p.requires_grad}
    # Llama: 4 layers x 7, and the head; 2 towers x 2 blocks x 4; projector 3; two factors each
    assert len(trainable) == 2 * (4 * 7 + 1 + 2 * 2 * 4 + 3)
    assert all("lora_" in name for name in trainable)
    policy.logits(make_observation(2)).logsumexp(-1).sum().backward()
    without = [n for n, p in policy.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


def test_the_head_computes_its_action_rows_with_their_adapter(tiny_folder):
    policy = with_random_adapters(tiny_folder)
    head = policy.model.language_model.lm_head
    hidden = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    full = head.base_layer.weight + head.get_delta_weight("default")
    # of 448 vocabulary rows the text ends at 384, and the last 256 of the text are actions
    torch.testing.assert_close(head(hidden), hidden @ full[128:384].T)


def test_adapters_are_saved_and_go_on(tiny_folder, tmp_path):
    policy = with_random_adapters(tiny_folder)
    save_trained(policy, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    again = load_policy(tiny_folder, lora=LORA, adapter=str(tmp_path))
    observation = make_observation(2)
    assert torch.equal(again.logits(observation), policy.logits(observation))


def test_peft_reads_the_saved_adapters(tiny_folder, tmp_path, tiny_policy):
    policy = with_random_adapters(tiny_folder)
    save_trained(policy, tmp_path)
    base = load_policy(tiny_folder)
    loaded = peft.PeftModel.from_pretrained(base.model, tmp_path)
    mine = {n: p for n, p in policy.model.named_parameters() if "lora_" in n}
    theirs = {n.removeprefix("base_model.model."): p for n, p in loaded.named_parameters() if "lora_" in n}
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_mistakes(tiny_folder, tmp_path):
    with pytest.raises(ValueError, match="no linear layer named 'q_prj'"):
        load_policy(tiny_folder, lora=LORA | {"targets": ["q_prj"]})
    with pytest.raises(ValueError, match="no adapter in"):
        load_policy(tiny_folder, lora=LORA, adapter=str(tmp_path))
    save_trained(with_random_adapters(tiny_folder), tmp_path)
    with pytest.raises(ValueError, match="does not fit the model's LoRA"):
        load_policy(tiny_folder, lora={"r": 8, "alpha": 8}, adapter=str(tmp_path))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"r": 4}, r"takes r and alpha.*got \{'r': 4\}: policy.lora=\{r: 32, alpha: 32\}"),
        ({"r": 4, "alpha": 4, "rank": 4}, "takes r and alpha"),
        (32, "takes r and alpha"),
        ({"r": 0, "alpha": 4}, "policy.lora.r must be an integer >= 1, got 0"),
        ({"r": 4.5, "alpha": 4}, "policy.lora.r must be"),
        ({"r": 4, "alpha": "x"}, "policy.lora.alpha must be"),
        ({"r": 4, "alpha": 0}, "policy.lora.alpha must be a number > 0, got 0"),
        ({"r": 4, "alpha": float("nan")}, "policy.lora.alpha must be a number > 0"),
        ({"r": 4, "alpha": 4, "targets": [1]}, r"policy.lora.targets must be a list of layer names, got \[1\]"),
        ({"r": 4, "alpha": 4, "targets": "q_proj"}, r"policy.lora.targets must be a list.*targets=\[q_proj,"),
    ],
)
def test_settings_that_cannot_be(lora, message):
    with pytest.raises(ValueError, match=message):
        load_policy(None, lora=lora)
