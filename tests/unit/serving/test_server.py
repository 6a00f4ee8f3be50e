"""The server with a toy policy, in this process: sessions, limits, malformed messages, batches, the end."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from tests.helpers.toy import A, ToyPolicy
from tests.helpers.toy import L as STEPS
from tests.unit.serving.test_wire import BAD_MESSAGES, BAD_OBSERVATIONS
from vla_rl.distributed.seeding import stable_seed
from vla_rl.errors import UserError
from vla_rl.types import Observation

websockets = pytest.importorskip("websockets", reason="optional: pip install 'vla-rl[serve]'")

from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from vla_rl.serving.batcher import Batcher  # noqa: E402
from vla_rl.serving.request import Expected, Request  # noqa: E402
from vla_rl.serving.server import Limits, PolicyServer, _Rate  # noqa: E402
from vla_rl.serving.wire import pack, unpack  # noqa: E402


@dataclass
class Recorded:
    """A toy policy that remembers its batches, and can be held."""

    policy: ToyPolicy = field(default_factory=ToyPolicy)
    batches: list[int] = field(default_factory=list)
    free: threading.Event = field(default_factory=threading.Event)

    def act(self, observation, seed_N, temperature):
        self.free.wait()
        self.batches.append(len(observation.instruction_N))
        if "unknown" in observation.instruction_N:
            raise UserError("the tokenizer does not know\nevery word")
        if "broken" in observation.instruction_N:
            raise RuntimeError("a bug")
        chunk = self.policy.act(observation, seed_N, temperature)
        for n, instruction in enumerate(observation.instruction_N):
            if instruction == "diverge":
                chunk.command_NLA[n] = float("nan")
        return chunk


class Running:
    """A server in a thread of its own."""

    def __init__(self, *, temperature=0.0, window=None, max_batch=8, **limits):
        self.actor = Recorded()
        self.actor.free.set()
        self.limits = Limits(**({"max_message_bytes": 100_000, "requests_per_s": 1e6, "max_clients": 16} | limits))
        self.loop, self.stop, self.port = asyncio.new_event_loop(), asyncio.Event(), 0
        self.settings = (temperature, window, max_batch)
        ready = threading.Event()

        def started(port):
            self.port = port
            ready.set()

        self.thread = threading.Thread(target=lambda: self.loop.run_until_complete(self._serve(started)), daemon=True)
        self.thread.start()
        assert ready.wait(10)

    async def _serve(self, started):
        temperature, window, max_batch = self.settings
        batcher = Batcher(self.actor, temperature=temperature, max_batch=max_batch)
        expected = Expected(images=1, proprio_dims=4, turned=True)
        self.server = PolicyServer(batcher, expected, self.limits, metadata={"name": "toy"}, window=window, seed=3)
        await self.server.run("127.0.0.1", 0, self.stop, started)

    def ask_to_stop(self):
        self.loop.call_soon_threadsafe(self.stop.set)

    def end(self):
        self.actor.free.set()
        self.ask_to_stop()
        self.thread.join(10)
        assert not self.thread.is_alive()

    @contextmanager
    def client(self):
        with connect(f"ws://127.0.0.1:{self.port}", compression=None) as connection:
            assert unpack(connection.recv(timeout=10)) == {"name": "toy"}
            yield connection


@contextmanager
def running(**settings):
    server = Running(**settings)
    try:
        yield server
    finally:
        server.end()


def observation(number=1.0, prompt="do it", **changes):
    state = np.array([1.0, number, number, 0.5])
    return {
        "observation/image": np.zeros((2, 2, 3), np.uint8), "observation/state": state, "prompt": prompt
    } | changes  # fmt: skip


def ask(connection, message):
    connection.send(message if isinstance(message, bytes | str) else pack(message))
    answer = connection.recv(timeout=10)
    return answer if isinstance(answer, str) else unpack(answer)


def expected_actions(number=1.0, seed=None):
    seen = Observation(torch.zeros(1, 2, 2, 3), torch.tensor([[1.0, number, number, 0.5]]), ["do it"])
    return ToyPolicy().act(seen, [seed or 0], 0.0 if seed is None else 1.6).command_NLA[0].numpy()


def test_a_session():
    with running() as server, server.client() as connection:
        answer = ask(connection, observation(0.25))
        assert answer["actions"].dtype == np.float32
        assert np.array_equal(answer["actions"], expected_actions(0.25))
        assert answer["policy_timing"]["infer_ms"] <= answer["server_timing"]["infer_ms"]
        assert not np.array_equal(ask(connection, observation(-2.0))["actions"], answer["actions"])


def test_the_timing_is_in_milliseconds_from_the_request_on():
    with running() as server, server.client() as connection:
        server.actor.free.clear()
        threading.Timer(0.05, server.actor.free.set).start()
        began = time.perf_counter()
        answer = ask(connection, observation())
        taken_ms = 1e3 * (time.perf_counter() - began)
        deciding_ms, in_all_ms = (answer[f"{name}_timing"]["infer_ms"] for name in ("policy", "server"))
        assert 25 < deciding_ms < in_all_ms < taken_ms


def test_openpis_client():
    client = pytest.importorskip("openpi_client.websocket_client_policy", reason="optional: openpi-client")
    with running() as server:
        policy = client.WebsocketClientPolicy("127.0.0.1", server.port)
        assert policy.get_server_metadata() == {"name": "toy"}
        assert np.array_equal(policy.infer(observation(0.5))["actions"], expected_actions(0.5))
        with pytest.raises(RuntimeError, match="has no 'prompt'"):
            policy.infer({"observation/image": np.zeros((2, 2, 3), np.uint8), "observation/state": np.zeros(4)})


def test_only_the_window_is_sent():
    with running(window=1) as server, server.client() as connection:
        actions = ask(connection, observation())["actions"]
        assert actions.shape == (1, A)
        assert STEPS > 1
        assert np.array_equal(actions, expected_actions()[:1])


def test_sampling_takes_the_clients_seed_or_one_of_the_request():
    with running(temperature=1.6) as server, server.client() as first, server.client() as second:
        for seed in (5, 0):
            assert np.array_equal(ask(first, observation(seed=seed))["actions"], expected_actions(seed=seed))
        for number, connection in ((0, first), (1, second)):
            for count in ((2, 3), (0, 1))[number]:
                own = expected_actions(seed=stable_seed(3, "serve", number, count))
                assert np.array_equal(ask(connection, observation())["actions"], own)


def test_a_hundred_malformed_messages_are_answered_on_their_own_connection():
    good = observation()
    wrong = [*BAD_MESSAGES.values(), "text", pack(5), pack(None), b""]
    wrong += [pack(good | {"observation/state": np.full(4, value)}) for value in (np.nan, np.inf, -np.inf)]
    wrong += [pack(message) for message, _ in BAD_OBSERVATIONS.values() if len(pack(message)) < 100_000]
    rng = np.random.default_rng(0)
    while len(wrong) < 100:  # a good message with some bytes changed; what happens to be good still is not sent
        noisy = bytearray(pack(good))
        for at in rng.integers(0, len(noisy), 3):
            noisy[at] = rng.integers(256)
        try:
            message = unpack(bytes(noisy))
            from vla_rl.serving.request import parse_request

            parse_request(message, Expected(1, 4, turned=True))
        except UserError:
            wrong.append(bytes(noisy))
    with running() as server, server.client() as clumsy, server.client() as other:
        for message in wrong:
            answer = ask(clumsy, message)
            assert isinstance(answer, str), message
            assert answer.startswith("error: ")
            assert "\n" not in answer
        assert np.array_equal(ask(clumsy, good)["actions"], expected_actions())
        assert np.array_equal(ask(other, good)["actions"], expected_actions())
        assert server.server.answered == 2


def test_a_message_that_is_too_large_ends_its_own_session_alone():
    with running(max_message_bytes=2000) as server, server.client() as greedy, server.client() as other:
        with pytest.raises(ConnectionClosed) as closed:
            ask(greedy, observation(**{"observation/image": np.zeros((64, 64, 3), np.uint8)}))
        assert closed.value.rcvd.code == 1009
        assert "actions" in ask(other, observation())


def test_too_many_requests_in_a_second():
    with running(requests_per_s=3.0) as server, server.client() as hasty, server.client() as other:
        answers = [ask(hasty, observation()) for _ in range(12)]
        refused = [answer for answer in answers if isinstance(answer, str)]
        assert "more than 3 requests per second" in refused[0]
        assert all(isinstance(answer, dict) for answer in answers[:3])  # a second's worth at once
        assert len(refused) >= 5
        assert "actions" in ask(other, observation())


def test_a_seconds_worth_of_requests_at_once_and_then_as_they_come(monkeypatch):
    now_s = 100.0
    monkeypatch.setattr("vla_rl.serving.server.time.monotonic", lambda: now_s)
    rate = _Rate(2.0)
    for _ in range(3):  # at once, half a second later, and a second later
        rate.take()
    with pytest.raises(UserError, match="more than 2 requests per second: .* requests_per_s=4"):
        rate.take()
    now_s = 100.5
    rate.take()
    with pytest.raises(UserError):
        rate.take()


def test_health_and_the_client_that_is_too_many():
    with running(max_clients=1) as server:
        url = f"http://127.0.0.1:{server.port}"
        with server.client():
            assert urllib.request.urlopen(f"{url}/healthz", timeout=10).read() == b"OK\n"
            with pytest.raises(InvalidStatus) as refused:
                connect(url.replace("http", "ws"))
            assert refused.value.response.status_code == 503
            assert refused.value.response.body == b"1 clients are connected already (max_clients=2)\n"
        with server.client() as again:
            assert "actions" in ask(again, observation())


def test_requests_that_wait_share_a_forward_and_one_that_fails_fails_alone(capfd):
    numbers = [0.1, 0.2, 0.3, 0.4, 0.5]
    prompts = ["do it", "unknown", "do it", "broken", "do it"]
    with running(max_batch=4) as server:
        answers = {}

        def run(number, prompt):
            with server.client() as connection:
                answers[number] = ask(connection, observation(number, prompt))

        server.actor.free.clear()
        threads = [
            threading.Thread(target=run, args=pair) for pair in zip([9.0, *numbers], ["do it", *prompts], strict=True)
        ]
        threads[0].start()
        wait_until(lambda: len(server.server._busy) == 1 and server.server.batcher._waiting == [])
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: len(server.server.batcher._waiting) == 5)
        server.actor.free.set()
        for thread in threads:
            thread.join(10)
    # the first alone; four of those that waited, then each of them alone because one failed; the fifth
    assert sorted(server.actor.batches) == [1, 1, 1, 1, 1, 1, 4]
    for number, prompt in zip(numbers, prompts, strict=True):
        if prompt == "do it":
            assert np.array_equal(answers[number]["actions"], expected_actions(number))
    assert answers[0.2] == "error: the tokenizer does not know every word"
    assert answers[0.4] == "error: the policy failed (RuntimeError); the server's log says more"
    assert "a bug" in capfd.readouterr().err


def test_nan_is_no_answer(capfd):
    with running() as server, server.client() as connection:
        told = ask(connection, observation(0.5, "diverge"))
        assert told.startswith("error: the policy's answer holds NaN or infinity: its weights have diverged")
        assert "actions" in ask(connection, observation())
    assert "Traceback" not in capfd.readouterr().err


def request(number=0.5, px=2, prompt="do it", more=0):
    state = torch.tensor([1.0, number, number, 0.5] + [0.0] * more)
    return Request(torch.zeros(px, px, 3, dtype=torch.uint8), state, prompt, None)


def decided(actor, requests, *, temperature=0.0, max_batch=8, leave=()):
    """Answers to requests that wait together, by a batcher alone; the seed of each is its place. Those in `leave` are
    given up before the policy sees them."""

    async def decide():
        batcher = Batcher(actor, temperature=temperature, max_batch=max_batch)
        waiting = [asyncio.create_task(batcher.decide(one, seed)) for seed, one in enumerate(requests)]
        await asyncio.sleep(0)  # all are in the queue now
        for place in leave:
            waiting[place].cancel()
        running = asyncio.create_task(batcher.run())
        answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
        running.cancel()
        return answers

    return asyncio.run(decide())


@pytest.fixture
def actor():
    recorded = Recorded()
    recorded.free.set()
    return recorded


@pytest.mark.parametrize("other", [{"px": 3}, {"more": 2}], ids=["pictures", "states"])
def test_observations_of_two_sizes_share_no_forward(actor, other, monkeypatch):
    monkeypatch.setattr(actor.policy, "act", lambda observation, seed_N, temperature: ToyPolicy().act(
        Observation(observation.frame_NHWC, observation.proprio_NP[:, :4], observation.instruction_N),
        seed_N, temperature,
    ))  # fmt: skip
    decided(actor, [request(), request(**other), request()])
    assert actor.batches == [2, 1]


def test_each_row_of_a_forward_has_its_own_seed_and_answer(actor):
    answers = decided(actor, [request(0.1), request(0.2), request(0.1)], temperature=1.6)
    assert actor.batches == [3]
    for seed, (number, answer) in enumerate(zip((0.1, 0.2, 0.1), answers, strict=True)):
        assert np.array_equal(answer, expected_actions(number, seed=seed))
    assert not np.array_equal(answers[0], answers[2])


def test_who_waits_longest_is_answered_first(actor, monkeypatch):
    seen = []
    inner = actor.act

    def act(observation, seed_N, temperature):
        assert not torch.is_grad_enabled()
        seen.append(observation.instruction_N)
        return inner(observation, seed_N, temperature)

    monkeypatch.setattr(actor, "act", act)
    decided(actor, [request(prompt=text) for text in "abcde"], max_batch=2)
    assert seen == [["a", "b"], ["c", "d"], ["e"]]


def test_a_request_that_is_given_up_is_not_computed(actor):
    given_up, answer = decided(actor, [request(), request()], leave=[0])
    assert isinstance(given_up, asyncio.CancelledError) and np.array_equal(answer, expected_actions(0.5))
    assert actor.batches == [1]


def test_a_request_that_is_given_up_while_the_policy_computes(actor):
    actor.free.clear()

    async def decide():
        batcher = Batcher(actor, temperature=0.0, max_batch=8)
        running = asyncio.create_task(batcher.run())
        given_up, other = (asyncio.create_task(batcher.decide(request(), 0)) for _ in range(2))
        await asyncio.sleep(0.05)  # the forward of both has begun
        given_up.cancel()
        actor.free.set()
        answer = await asyncio.wait_for(other, 10)
        assert not running.done()
        running.cancel()
        return answer

    assert np.array_equal(asyncio.run(decide()), expected_actions(0.5))
    assert actor.batches == [2]


def test_a_batcher_that_fails_ends_the_server(actor, monkeypatch):
    """A defect of ours: a server that runs on would leave every client without an answer."""
    batcher = Batcher(actor, temperature=0.0, max_batch=8)

    async def fail():
        raise RuntimeError("a defect")

    monkeypatch.setattr(batcher, "run", fail)
    limits = Limits(max_message_bytes=1000, requests_per_s=1.0, max_clients=1)
    server = PolicyServer(batcher, Expected(1, 4, True), limits, metadata={}, window=None, seed=1)
    with pytest.raises(RuntimeError, match="a defect"):
        asyncio.run(asyncio.wait_for(server.run("127.0.0.1", 0, asyncio.Event(), lambda port: None), 10))


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never happened")


def test_the_end_answers_what_is_under_way():
    server = Running()
    with server.client() as busy, server.client() as idle:
        assert "actions" in ask(idle, observation())
        server.actor.free.clear()
        busy.send(pack(observation()))
        wait_until(lambda: any(server.server._busy.values()))
        server.ask_to_stop()
        with pytest.raises(ConnectionClosed) as closed:
            idle.recv(timeout=10)
        assert closed.value.rcvd.code == 1001
        server.actor.free.set()
        assert "actions" in unpack(busy.recv(timeout=10))
        with pytest.raises(ConnectionClosed) as closed:
            busy.recv(timeout=10)
        assert closed.value.rcvd.code == 1001
    server.end()
    with pytest.raises(OSError):
        connect(f"ws://127.0.0.1:{server.port}")


def test_a_client_that_goes_in_the_middle_hurts_nobody(caplog):
    with running() as server, server.client() as other:
        with server.client() as gone:
            gone.send(pack(observation()))
            gone.socket.close()
        assert "actions" in ask(other, observation())
        wait_until(lambda: len(server.server._busy) == 1)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_an_address_that_is_taken():
    with running() as server:
        batcher = Batcher(server.actor, temperature=0.0, max_batch=1)
        other = PolicyServer(batcher, Expected(1, 4, True), server.limits, metadata={}, window=None, seed=1)
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{server.port} .*port={server.port + 1}"):
            asyncio.run(other.run("127.0.0.1", server.port, asyncio.Event(), lambda port: None))
        with pytest.raises(UserError, match=r"cannot listen on 256.1.1.1:8000 \(.*\): host=127.0.0.1, or 0.0.0.0"):
            asyncio.run(other.run("256.1.1.1", 8000, asyncio.Event(), lambda port: None))
