"""The global random generators, kept in a checkpoint."""

import random

import numpy as np
import torch

from vla_rl.distributed.random_state import random_state, set_random_state


def draws() -> list[float]:
    return [random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), float(torch.randn(()))]


def test_what_was_drawn_is_drawn_again(tmp_path):
    draws()  # gauss and normal keep half of a pair for the next call
    torch.save(random_state(), tmp_path / "state")
    expected = draws()
    draws()
    set_random_state(torch.load(tmp_path / "state", weights_only=True))
    assert draws() == expected
