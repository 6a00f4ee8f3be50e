"""Meta-World's tasks as facts: groups, names, and one line for each wrong option of the pool. Nothing is imported."""

import importlib.util

import pytest

from vla_rl.errors import UserError
from vla_rl.policy.openvla_oft.tiny import WORDS
from vla_rl.sim.metaworld import tasks
from vla_rl.sim.metaworld.pool import MetaWorldPool


def test_groups_count_what_the_papers_count_and_sentences_are_distinct():
    assert {suite: len(indices) for suite, indices in tasks.SUITES.items()} == {
        "mt50": 50, "mt10": 10, "easy": 28, "medium": 11, "hard": 6, "very_hard": 5,
    }  # fmt: skip
    assert len({task.instruction for task in tasks.TASKS}) == 50
    assert set(" ".join(task.instruction for task in tasks.TASKS).split()) <= set(WORDS)


def test_a_task_is_named_or_counted():
    assert tasks.suite_tasks("mt50", ["assembly", "button-press-v3", 43]) == [0, 6, 43]
    assert tasks.TASKS[43].name == "reach"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suite": "mt5"}, r"no Meta-World suite 'mt5'.*Allowed: mt50, mt10, easy.*sim.suite=mt10"),
        ({"tasks": ["reech"]}, r"no task 'reech'; did you mean 'reach'\?.*sim.tasks=\[reach,door-open\]"),
        ({"tasks": [50]}, r"no task 50. Allowed: 0..49"),
        ({"tasks": [True]}, r"no task True"),
        ({"suite": "hard", "tasks": ["reach"]}, "task reach is not one of suite 'hard': sim.suite=mt50"),
        ({"tasks": ["reach", 43]}, r"none twice, got \['reach', 43\]"),
        ({"tasks": "reach"}, r"sim.tasks must be a list of tasks, got 'reach'"),
        ({"horizon": 501}, r"sim.horizon must be an integer >= 8 and <= 500, got 501 \(sim.horizon=100\)"),
        ({"light": 1}, r"sim.light must be true or false, got 1 \(sim.light=true\)"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        MetaWorldPool(**options)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"Meta-World is not installed; needed: .*pip install 'vla-rl\[metaworld\]'"):
        MetaWorldPool()
