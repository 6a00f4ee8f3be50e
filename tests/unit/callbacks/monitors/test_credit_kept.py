"""The share of credit that a mask keeps: two trajectories, worked out by hand."""

import lightning as L
import pytest
import torch

from callbacks.monitors.credit_kept import CreditKept
from tests.helpers.make import MadeData, make_trajectory, train
from vla_rl.types import RolloutGroup

VALUES = {0: [0.5, 0.7, 1.0], 1: [0.5, 0.2, 0.05]}  # credit .04 .09 0 and .09 .0225 .0025, together .245


def one_group(iteration):
    trajectories = [make_trajectory([0, 0, 8], uid=uid, success=uid == 0, advantage=1.0) for uid in VALUES]
    for trajectory in trajectories:
        trajectory.actions.extras["value"] = torch.tensor(VALUES[trajectory.episode.uid])
    return [RolloutGroup(trajectories)]


class SecondOnly(L.Callback):
    """A mask that keeps the second chunk of each trajectory."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        batch.select_((batch.chunk_N == 1).nonzero().squeeze(1))


@pytest.mark.parametrize("passes", [1, 2])
def test_shares_of_credit_and_of_open_chunks(tmp_path, passes):
    module = train(tmp_path, SecondOnly(), CreditKept(), data=MadeData(one_group, passes=passes))
    logged = module.trainer.logged_metrics
    assert logged["credit/kept"].item() == pytest.approx((0.09 + 0.0225) / 0.245)
    assert logged["credit/open_kept"].item() == pytest.approx(2 / 4)  # the second chunks, of the first two each


def test_nothing_is_logged_without_a_critic(tmp_path):
    module = train(tmp_path, SecondOnly(), CreditKept())
    assert not [name for name in module.trainer.logged_metrics if name.startswith("credit")]
