"""A small policy that can act."""

import pytest

from tests.helpers.policies import make_tiny_policy


@pytest.fixture(scope="session")
def tiny_policy():
    return make_tiny_policy()
