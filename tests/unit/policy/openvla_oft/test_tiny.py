import torch

from tests.helpers.policies import make_observation
from vla_rl.policy.openvla_oft.tiny import random_policy_7b, tiny_config


def test_random_weights_are_made_in_their_dtype_and_the_usual_one_stays():
    """With the small sizes: what `random:7b` does with its own."""
    policy = random_policy_7b(torch.bfloat16, sizes=tiny_config())
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32
    assert policy.prompts(["put the bowl on the plate"])[0].shape == (1, 32)
    observation = make_observation(1)
    logits = policy.logits(observation)
    assert logits.isfinite().all()
    assert logits.std() > 0.01
    other = random_policy_7b(torch.bfloat16, seed=1, sizes=tiny_config())
    assert not torch.equal(other.logits(observation), logits)
