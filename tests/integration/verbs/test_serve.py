"""`python -m vla_rl.serve`: a LIBERO episode through the real client is the episode without a server, bit for bit."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tests.helpers.tiny_fit import ROOT
from vla_rl import serve
from vla_rl.errors import UserError
from vla_rl.policy import load_policy
from vla_rl.rollout.collect import collect
from vla_rl.sim.libero.pool import LiberoPool
from vla_rl.types import ActionChunk, Episode, Observation

openpi = pytest.importorskip("openpi_client.websocket_client_policy", reason="optional: openpi-client")


@pytest.fixture(scope="module")
def port():
    """Of a server that samples, in a process of its own, which has to end well."""
    command = [sys.executable, "-m", "vla_rl.serve", "checkpoint=shipped:object_tiny", "port=0", "decoding=sampled"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = server.stdout.readline()
        assert said.startswith("serving shipped:object_tiny on ws://127.0.0.1:"), said + server.stderr.read()
        yield int(said.rpartition(":")[2])
    finally:
        server.send_signal(signal.SIGTERM)
        printed, errors = server.communicate(timeout=60)
    assert server.returncode == 0, errors
    assert re.fullmatch(r"stopped after \d+ answers\n", printed)
    assert errors == ""


class Remote:
    """Decides by asking a server, as a robot's program does."""

    def __init__(self, port: int) -> None:
        self.client = openpi.WebsocketClientPolicy("127.0.0.1", port)

    def act(self, observation: Observation, seed_N: Sequence[int], temperature: float) -> ActionChunk:
        command = torch.stack([self.ask(observation, n, seed) for n, seed in enumerate(seed_N)])
        return ActionChunk({}, command, command, command, command)

    def ask(self, observation: Observation, n: int, seed: int) -> torch.Tensor:
        frame = observation.frame_NHWC[n].numpy()
        answer = self.client.infer(
            {
                "observation/image": np.ascontiguousarray(frame[::-1, ::-1]),
                "observation/state": observation.proprio_NP[n].numpy(),
                "prompt": observation.instruction_N[n],
                "seed": seed,
            }
        )
        return torch.from_numpy(answer["actions"].copy())


def test_an_episode_is_the_same_with_and_without_a_server(port):
    remote = Remote(port)
    assert remote.client.get_server_metadata()["decoding"] == "sampled"
    episode = Episode(uid=0, task=0, init_state=10000, seed=5)
    with LiberoPool(tasks=[0], horizon=48, placement_noise_m=0.02, workers=1) as pool:
        (own,), (served,) = (
            collect(pool, policy, [episode], temperature=1.0)[0]
            for policy in (load_policy("shipped:object_tiny"), remote)
        )
    assert len(own) == 6
    for name in ("frame_NHWC", "proprio_NP", "last_frame_HWC"):
        assert torch.equal(getattr(own, name), getattr(served, name))
    assert torch.equal(own.actions.command_NLA, served.actions.command_NLA)
    assert len(own.actions.command_NLA[..., :6].unique()) > 5  # the arm does not stand still


def test_the_robots_loop_of_the_docs(port):
    (code,) = re.findall(r"```python\n(# a robot.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.S)
    program: dict = {"__name__": "robot"}
    exec(code, program)
    program["HORIZON"] = 16
    moved = []
    robot = program["Robot"]()
    robot.move = moved.append
    program["run"](robot, "pick up the milk and place it in the basket", port=port)
    assert [action.shape for action in moved] == [(7,)] * 16


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("window=9", "window must be an integer >= 1 and <= 8, got 9"),
        ("port=70000", "port must be an integer >= 0 and <= 65535"),
        ("max_batch=0", "max_batch must be an integer >= 1"),
        ("requests_per_s=0", "requests_per_s must be a number > 0"),
        ("decoding=best", "decoding must be one of greedy, sampled"),
        ("widnow=3", "unknown key 'widnow'; did you mean 'window'"),
        ("checkpoint=nowhere", "missing checkpoint 'nowhere'"),
    ],
)
def test_wrong_options_are_refused(argument, message):
    with pytest.raises(UserError, match=message):
        serve.main([argument])


def test_the_load_tool():
    command = [sys.executable, "tools/bench_serve.py", "--clients", "1", "2", "--requests", "3", "--px", "64"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert {name: (row["answers"], row["errors"]) for name, row in result["loads"].items()} == {
        "1": (3, 0),
        "2": (6, 0),
    }
    assert all(row["p95_ms"] >= row["median_ms"] > 0 for row in result["loads"].values())
