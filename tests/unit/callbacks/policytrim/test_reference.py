"""How far the policy has moved from its reference."""

from types import SimpleNamespace

import pytest
import torch

from callbacks.policytrim.reference import Reference
from tests.helpers.make import make_trajectory
from tests.helpers.toy import ToyPolicy


class HalfPerTemperature(ToyPolicy):
    """Finds half a nat less, per unit of temperature, than was noted; and much more in steps that were not executed."""

    def __init__(self):
        super().__init__()
        self.rows, self.biases = [], []

    def log_prob(self, batch, temperature):
        self.rows.append(len(batch))
        self.biases.append(float(self.head.bias[0]))
        return torch.where(batch.token_mask_NLA, batch.actions.logprob_NLA - 0.5 * temperature, 9.0), None


@pytest.mark.parametrize(("micro_rows", "rows"), [(None, [3, 2]), (2, [2, 1, 2])])
def test_the_mean_log_ratio_of_executed_tokens_under_the_weights_of_then(micro_rows, rows):
    policy, reference = HalfPerTemperature(), Reference()
    reference.snapshot(policy)
    with torch.no_grad():
        policy.head.bias += 1.0
    trajectories = [make_trajectory([0] * 3, last_steps=2), make_trajectory([0] * 2)]
    data = SimpleNamespace(
        policy=policy,
        rollout=SimpleNamespace(temperature=1.6),
        grpo=SimpleNamespace(micro_rows=micro_rows),
        attached_trainer=None,
    )
    assert reference.divergence(data, trajectories, trajectories[0]) == pytest.approx([0.8, 0.8], rel=1e-6)
    assert policy.rows == rows
    assert set(policy.biases) == {0.0} and bool((policy.head.bias == 1).all())
