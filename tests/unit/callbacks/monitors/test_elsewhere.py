"""What `SuccessElsewhere` refuses, before anything runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from callbacks.monitors.elsewhere import SuccessElsewhere
from tests.helpers.toy import ToyPolicy
from vla_rl.errors import UserError
from vla_rl.sim.libero.pool import LiberoPool

TOY, LIBERO = "tests.helpers.toy.ToyPool", "vla_rl.LiberoPool"


def data(target: str, **options: object) -> SimpleNamespace:
    policy = ToyPolicy()
    return SimpleNamespace(sim={"_target_": target} | options, policy=policy)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sim": {}}, "callbacks.elsewhere.sim must be options of the simulators that are different there, got {}"),
        ({"sim": "goal"}, "got 'goal' (callbacks.elsewhere.sim.horizon=400)"),
        ({"init_states": [5, 5]}, "callbacks.elsewhere.init_states must be a range with 0 <= first < end, got [5, 5]"),
        ({"decoding": "best"}, "callbacks.elsewhere.decoding"),
    ],
)
def test_a_bad_option(options, said):
    with pytest.raises(UserError) as refused:
        SuccessElsewhere(**({"sim": {"slots": 3}, "init_states": [0, 5]} | options))
    assert said in str(refused.value)


def test_simulators_that_cannot_be_there_or_do_not_fit_the_policy():
    elsewhere = SuccessElsewhere({"slits": 3}, [0, 5])
    with pytest.raises(UserError, match="no option 'slits'.*sim.slots=...\\); or .*callbacks.elsewhere=null"):
        elsewhere.check_run(data(TOY), [])
    whole_chunks = SuccessElsewhere({"placement_noise_m": 0.02}, [10000, 10005])
    with pytest.raises(UserError, match="decides 2 control steps at a time, the simulators expect 8"):
        whole_chunks.check_run(data(LIBERO, workers=1), [])


def test_more_initial_states_than_there_are(monkeypatch):
    closed = []
    monkeypatch.setattr(LiberoPool, "close", lambda pool: closed.append(pool))
    drawn = SuccessElsewhere({"placement_noise_m": 0.02}, [10000, 10060])
    drawn.check_run(data(LIBERO, workers=1, chunk_steps=2), [])
    official = SuccessElsewhere({"horizon": 400}, [40, 60])
    with pytest.raises(UserError, match=r"init_states=\[40, 60\] goes beyond the 50 initial.*init_states=\[0,50\]"):
        official.check_run(data(LIBERO, workers=1, chunk_steps=2), [])
    assert len(closed) == 2
