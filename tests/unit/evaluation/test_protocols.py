import pytest

from vla_rl.errors import UserError
from vla_rl.evaluation.protocols import PROTOCOLS, departures, find_protocol, sim_values
from vla_rl.sim.libero.suites import SUITES

# suites: spatial, object, goal, 10, 90
PUBLISHED = {
    "oft": ([220, 280, 300, 520, 400], 10, "greedy", (0, 50)),
    "simplevla": ([512] * 5, 10, "greedy", (0, 50)),
    "rlinf": ([512] * 5, 15, "sampled", (0, 50)),
    "openpi": ([220, 280, 300, 520, 400], 10, "greedy", (0, 50)),
    "lerobot": ([280, 280, 300, 520, 400], 10, "greedy", (0, 10)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_rules(name):
    horizons, settle_steps, decoding, init_states = PUBLISHED[name]
    protocol = PROTOCOLS[name]
    assert [protocol.horizon[suite] for suite in ("spatial", "object", "goal", "10", "90")] == horizons
    assert (protocol.settle_steps, protocol.decoding, protocol.init_states) == (settle_steps, decoding, init_states)
    assert protocol.temperature == (1.6 if name == "rlinf" else None)
    assert "/" in protocol.source


def test_every_suite_has_a_horizon_in_every_published_protocol():
    assert set(PROTOCOLS) == {*PUBLISHED, "heldout"}
    assert all(set(PROTOCOLS[name].horizon) == set(SUITES) for name in PUBLISHED)


def test_a_protocol_fixes_values_of_the_simulators():
    expected = {"horizon": 280, "settle_steps": 10, "placement_noise_m": 0.0}
    assert sim_values("oft", "object", given=["sim.assets"]) == expected
    assert sim_values("heldout", "object", given=["sim.horizon"]) == {}


@pytest.mark.parametrize("key", ["horizon", "settle_steps", "placement_noise_m"])
def test_a_value_is_not_given_twice(key):
    with pytest.raises(UserError, match=f"protocol=oft fixes sim.{key}=.*: leave sim.{key} out"):
        sim_values("oft", "object", given=[f"sim.{key}"])


def test_unknown_protocols_and_suites():
    with pytest.raises(UserError, match="no protocol 'off'; did you mean 'oft'.*protocol=heldout"):
        find_protocol("off")
    with pytest.raises(UserError, match="no horizon for suite 'mine'; it knows spatial, object"):
        sim_values("rlinf", "mine", given=[])


def test_departures_are_named():
    as_published = {"camera_px": 256, "robot_geoms": "visual", "assets": "hub"}
    assert departures("oft", as_published) == []
    tiny = {"camera_px": 128, "robot_geoms": "collision", "assets": "standin"}
    assert departures("oft", tiny) == [
        "sim.camera_px=128 (256)", "sim.robot_geoms=collision (visual)", "sim.assets=standin (LIBERO's own)"
    ]  # fmt: skip
    assert departures("heldout", tiny) == []
