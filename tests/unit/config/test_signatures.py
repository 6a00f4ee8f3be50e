"""Option names read from the source are those that Python itself finds."""

import inspect

import pytest

import callbacks
import vla_rl
from vla_rl.config.signatures import is_missing, option_names

NAMES = [f"{package.__name__}.{name}" for package in (callbacks, vla_rl) for name in package.MODULES]


@pytest.mark.parametrize("path", NAMES)
def test_names_of_our_targets(path):
    module, _, name = path.rpartition(".")
    target = getattr({"callbacks": callbacks, "vla_rl": vla_rl}[module], name)
    assert not is_missing(path)
    if (names := option_names(path)) is not None:
        assert names == list(inspect.signature(target).parameters)


def test_most_targets_can_be_read():
    assert option_names("callbacks.masks.pcm.PCM")[:2] == ["budget", "floor"]
    assert option_names("vla_rl.load_policy")[0] == "checkpoint"
    assert option_names("vla_rl.LiberoPool")[0] == "suite"


@pytest.mark.parametrize("path", ["callbacks.FullPadded", "lightning.pytorch.Trainer", "callbacks.no.Such", "PCM"])
def test_others_are_left_to_the_import(path):
    assert option_names(path) is None
