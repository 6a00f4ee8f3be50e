"""A policy that has learnt nothing yet is refused before a simulator or a server starts."""

from dataclasses import replace

import pytest

from tests.helpers.toy import ToyPolicy, ToyPool
from vla_rl import load_flow_policy, load_policy, serve
from vla_rl.errors import UserError
from vla_rl.rollout.datamodule import check_policy


def test_random_weights_cannot_act():
    with pytest.raises(UserError, match=r"random weights cannot act .*: policy.checkpoint=shipped:object_tiny$"):
        load_policy(None).check_can_act()
    with pytest.raises(UserError, match=r"no statistics of action, .* \(policy.checkpoint=FOLDER\)$"):
        load_flow_policy(None).check_can_act()


def test_what_is_shipped_can():
    load_policy("shipped:object_tiny").check_can_act()
    load_flow_policy("shipped:object_flow_tiny").check_can_act()


def test_a_state_that_is_read_needs_statistics():
    policy = load_flow_policy("shipped:object_flow_tiny")
    policy.processors.state = replace(policy.processors.state, statistics={})
    policy.check_can_act()
    policy.processors.proprio_dims = 8
    with pytest.raises(UserError, match="no statistics of observation.state,"):
        policy.check_can_act()


def test_it_is_asked_beside_the_simulators():
    class Untrained(ToyPolicy):
        def check_can_act(self):
            raise UserError("not yet")

    check_policy(ToyPool(), ToyPolicy())
    with pytest.raises(UserError, match="not yet"):
        check_policy(ToyPool(), Untrained())


def test_the_server_asks_before_it_listens(monkeypatch):
    monkeypatch.setattr("vla_rl.serve.serve", lambda *_: pytest.fail("it serves"))
    with pytest.raises(UserError, match="policy.checkpoint=shipped:object_tiny$"):
        serve.main(["conf=sft_object_tiny", "port=0"])
