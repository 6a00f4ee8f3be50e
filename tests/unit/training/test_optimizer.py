import sys

import pytest
import torch

from vla_rl.config.schema import OptimConfig
from vla_rl.errors import UserError
from vla_rl.training.optimizer import build_optimizer


def step(**options):
    weight = torch.nn.Parameter(torch.zeros(100, 100))
    optimizer = build_optimizer([weight], OptimConfig(lr=0.01, weight_decay=0.0, **options))
    weight.grad = torch.linspace(-1, 1, 10_000).view(100, 100)
    optimizer.step()
    return weight.detach(), optimizer


def test_the_first_step_has_the_size_of_the_learning_rate():
    weight, optimizer = step()
    assert type(optimizer) is torch.optim.AdamW
    torch.testing.assert_close(weight, torch.linspace(1, -1, 10_000).view(100, 100).sign() * 0.01)


def test_eight_bit_moments_make_nearly_the_same_step():
    weight, optimizer = step(optimizer="adamw8bit")
    (state,) = optimizer.state.values()
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8
    torch.testing.assert_close(weight, step()[0], atol=1e-4, rtol=0)


def test_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match="needs bitsandbytes .*: optim.optimizer=adamw"):
        step(optimizer="adamw8bit")
