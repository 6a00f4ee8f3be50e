"""Messages: as openpi's client has them, and nothing else."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from vla_rl.errors import UserError

msgpack = pytest.importorskip("msgpack", reason="optional: pip install 'vla-rl[serve]'")

from vla_rl.serving.request import Expected, parse_request  # noqa: E402
from vla_rl.serving.wire import pack, unpack  # noqa: E402


def test_arrays_and_scalars_come_back_as_they_were():
    sent = {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        "state": np.array([0.5, -1.25], np.float32),
        "flags": np.array([True, False]),
        "one": np.float32(2.5),
        "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big-endian": np.array([1.0, 2.0], ">f4"),
        "nested": [{"text": "stove", "none": None, "empty": np.zeros((0, 7))}],
    }
    received = unpack(pack(sent))
    for name in ("image", "state", "flags", "columns first", "big-endian"):
        assert received[name].dtype == sent[name].dtype
        assert np.array_equal(received[name], sent[name])
    assert type(received["one"]) is np.float32
    assert received["one"] == 2.5
    assert received["nested"][0]["empty"].shape == (0, 7)
    assert (received["nested"][0]["text"], received["nested"][0]["none"]) == ("stove", None)


@pytest.mark.parametrize("value", [np.complex64(1), np.array([None]), np.array(["text"]), object()])
def test_what_nobody_could_read_is_not_sent(value):
    with pytest.raises(TypeError, match="cannot be sent$"):
        pack({"a": value})


def test_openpis_client_speaks_the_same():
    theirs = pytest.importorskip("openpi_client.msgpack_numpy", reason="optional: pip install --no-deps openpi-client")
    message = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.int64(3), "c": "text"}
    assert pack(message) == theirs.packb(message)
    back = theirs.unpackb(pack(message))
    assert np.array_equal(back["a"], message["a"])


def array(**changes):
    return msgpack.packb(
        {b"__ndarray__": True, b"data": bytes(12), b"dtype": "<f4", b"shape": [3]}
        | {k.encode(): v for k, v in changes.items()}
    )


BAD_MESSAGES = {
    "not msgpack": b"\xc1",
    "cut off": pack({"a": np.zeros(9)})[:-3],
    "two messages": pack(1) + pack(2),
    "pickle": pickle.dumps({"a": 1}),
    "a pickle in an object array": array(dtype="|O", data=pickle.dumps([1, 2, 3])),
    "dtype of a structure": array(dtype="V4"),
    "dtype that is no text": array(dtype=7),
    "dtype with a comma": array(dtype="<f4,<f4", data=bytes(24)),
    "complex numbers": array(dtype="<c8", data=bytes(24)),
    "a long dtype": array(dtype="<f4" * 1000),
    "more elements than bytes": array(shape=[10**12]),
    "fewer elements than bytes": array(shape=[1]),
    "a negative size": array(shape=[-3]),
    "a shape that is no list": array(shape="3"),
    "a size that is no integer": array(shape=[3.0]),
    "data that are no bytes": array(data="x" * 12),
    "a scalar of the wrong type": msgpack.packb({b"__npgeneric__": True, b"dtype": "<f4", b"data": "x"}),
    "deeply nested": b"\x91" * 5000,
    "a map whose key is a list": b"\x81\x90\x01",
    "an unknown extension of time": b"\xc7\xff\xff",
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_what_is_no_message_is_refused(name):
    with pytest.raises(UserError):
        unpack(BAD_MESSAGES[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [-3]}, "shape .-3.; a shape is a list of integers >= 0"),
        ({"shape": 3}, "shape 3; a shape is a list of integers >= 0"),
        ({"shape": [3.0]}, "shape .3.0.; a shape is a list of integers >= 0"),
        ({"shape": [2]}, "shape .2. and dtype <f4 does not have as many bytes as it says"),
        ({"data": 12}, "shape .3. and dtype <f4 does not have as many bytes as it says"),
    ],
)
def test_what_is_wrong_with_an_array_is_said(changes, message):
    with pytest.raises(UserError, match=message):
        unpack(array(**changes))


def observation(**changes):
    given = {
        "observation/image": np.zeros((4, 4, 3), np.uint8),
        "observation/wrist_image": np.ones((4, 4, 3), np.uint8),
        "observation/state": np.arange(8, dtype=np.float64),
        "prompt": "turn on the stove",
    }
    return {key: value for key, value in (given | changes).items() if value is not None}


EXPECTED = Expected(images=2, proprio_dims=8, turned=True)


def test_an_observation_is_as_the_simulator_renders_it():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    request = parse_request(observation(**{"observation/image": image, "seed": 7}), EXPECTED)
    assert request.frame_HWC.shape == (4, 4, 6)
    assert np.array_equal(request.frame_HWC[..., :3], image[::-1, ::-1])
    assert request.frame_HWC[..., 3:].unique().tolist() == [1]
    assert request.proprio_P.tolist() == list(range(8))
    assert (request.instruction, request.seed) == ("turn on the stove", 7)
    straight = parse_request(observation(**{"observation/image": image}), Expected(1, 0, turned=False))
    assert np.array_equal(straight.frame_HWC, image)
    assert straight.seed is None
    without = observation(**{"observation/state": None})
    assert parse_request(without, Expected(1, 0, turned=False)).proprio_P.shape == (0,)


IMAGE, STATE = "observation/image", "observation/state"
BAD_OBSERVATIONS = {
    "no map": ([1, 2], "an observation is a map, got list"),
    "no picture": (observation(**{IMAGE: None}), "has no 'observation/image'; did you mean 'observation/wrist_image'"),
    "a picture of floats": (observation(**{IMAGE: np.zeros((4, 4, 3))}), r"uint8 .* got float64 \[4, 4, 3\]"),
    "channels first": (observation(**{IMAGE: np.zeros((3, 4, 4), np.uint8)}), r"got uint8 \[3, 4, 4\]"),
    "not square": (observation(**{IMAGE: np.zeros((4, 5, 3), np.uint8)}), "square picture"),
    "empty": (observation(**{IMAGE: np.zeros((0, 0, 3), np.uint8)}), "square picture"),
    "a text": (observation(**{IMAGE: "cat.png"}), "square picture, .* got 'cat.png'"),
    "a huge picture": (observation(**{IMAGE: np.zeros((2049, 2049, 3), np.uint8)}), "up to 2048"),
    "two sizes": (observation(**{IMAGE: np.zeros((5, 5, 3), np.uint8)}), "must be of one size"),
    "no state": (observation(**{STATE: None}), "has no 'observation/state'"),
    "a short state": (observation(**{STATE: np.zeros(7)}), r"must be an array of 8 numbers, got float64 \[7\]"),
    "a state of two axes": (observation(**{STATE: np.zeros((1, 8))}), r"got float64 \[1, 8\]"),
    "a list": (observation(**{STATE: [0.0] * 8}), "must be an array of 8 numbers"),
    "NaN": (observation(**{STATE: np.full(8, np.nan)}), "NaN or infinite"),
    "infinite as float32": (observation(**{STATE: np.full(8, 1e300)}), "NaN or infinite"),
    "no prompt": (observation(prompt=None), "has no 'prompt'"),
    "an empty prompt": (observation(prompt=" "), "text of 1 to 1000 characters"),
    "a long prompt": (observation(prompt="x" * 1001), "text of 1 to 1000 characters"),
    "a prompt of bytes": (observation(prompt=b"stove"), "must be text"),
    "a negative seed": (observation(seed=-1), "'seed' must be an integer >= 0"),
    "a seed of text": (observation(seed="1"), "'seed' must be an integer >= 0"),
    "a huge seed": (observation(seed=2**63), "'seed' must be an integer >= 0"),
    "a seed of true": (observation(seed=True), "'seed' must be an integer >= 0 .* got True"),
    "a state of flags": (observation(**{STATE: np.ones(8, bool)}), r"array of 8 numbers, got bool \[8\]"),
    "what is long is shown in part": (observation(prompt=["x"] * 1000), r"got .{60}\.\.\.$"),
}


def test_the_largest_that_is_read():
    pictures = {IMAGE: np.zeros((2048, 2048, 3), np.uint8)}
    message = observation(**pictures, **{STATE: np.zeros(1000)}, prompt="x" * 1000, seed=2**63 - 1)
    request = parse_request(message, Expected(1, 0, turned=True))
    assert request.frame_HWC.shape == (2048, 2048, 3)
    assert (len(request.proprio_P), len(request.instruction), request.seed) == (1000, 1000, 9223372036854775807)
    with pytest.raises(UserError, match=r"up to 1000 numbers, got float64 \[1001\]"):
        parse_request(observation(**{STATE: np.zeros(1001)}), Expected(1, 0, turned=True))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("name", BAD_OBSERVATIONS)
def test_what_is_no_observation_is_refused(name):
    message, words = BAD_OBSERVATIONS[name]
    with pytest.raises(UserError, match=words):
        parse_request(message, EXPECTED)
