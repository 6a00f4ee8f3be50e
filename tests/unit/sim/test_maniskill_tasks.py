"""ManiSkill's tasks as facts, and one line for each wrong option and for what is missing. Nothing of it is imported."""

import importlib.util
import os

import pytest

from vla_rl.config.compose import compose
from vla_rl.errors import UserError
from vla_rl.sim.maniskill import tasks, vulkan
from vla_rl.sim.maniskill.pool import ManiSkillPool


def test_a_task_is_named_or_counted():
    assert tasks.suite_tasks("tabletop", None) == [0, 1, 2]
    assert tasks.suite_tasks("tabletop", ["PushCube-v1", "PickCube", 1]) == [2, 0, 1]
    assert len({task.instruction for task in tasks.TASKS}) == 3


def test_the_conf_names_the_pool_and_takes_its_options():
    sim = compose(["conf=pcm_object_tiny", "sim=maniskill", "sim.tasks=[PickCube]", "sim.horizon=80"]).sim
    assert (sim["_target_"], sim["suite"], sim["tasks"], sim["horizon"]) == (
        "vla_rl.ManiSkillPool", "tabletop", ["PickCube"], 80,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suite": "mt50"}, "no ManiSkill suite 'mt50'; allowed: tabletop: sim.suite=tabletop"),
        (
            {"tasks": ["PickCub"]},
            r"no ManiSkill task 'PickCub'; did you mean 'PickCube'\? Allowed: PickCube, StackCube, PushCube, or 0..2; "
            r"e.g. sim.tasks=\[PickCube,PushCube\]",
        ),
        ({"tasks": [3]}, "no ManiSkill task 3. Allowed: PickCube"),
        ({"tasks": [True]}, "no ManiSkill task True"),
        ({"tasks": ["PickCube", 0]}, r"none twice, got \['PickCube', 0\]"),
        ({"horizon": 4}, r"sim.horizon must be an integer >= 8, got 4 \(sim.horizon=50\)"),
        ({"perturb": ["blurr"]}, "did you mean 'blur'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        ManiSkillPool(**options)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"ManiSkill is not installed; needed: .*pip install 'vla-rl\[maniskill\]'"):
        ManiSkillPool()


def test_a_driver_that_does_not_work_is_one_line_with_its_own_words(monkeypatch):
    monkeypatch.delenv(vulkan._CHECKED, raising=False)
    monkeypatch.setattr(vulkan, "_PROBE", "raise RuntimeError('failed to find a rendering device')")
    with pytest.raises(UserError) as refused:
        vulkan.check_vulkan()
    assert str(refused.value).startswith("no Vulkan driver works here, and ManiSkill draws with Vulkan (RuntimeError: ")
    assert "failed to find a rendering device); needed: Mesa 24.3 or newer" in str(refused.value)
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(vulkan, "_PROBE", "import os; os.abort()")  # a driver that crashes
    with pytest.raises(UserError, match=r"\(exit status -6\)"):
        vulkan.check_vulkan()


def test_a_working_driver_is_probed_once_and_again_when_another_is_chosen(monkeypatch):
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)
    monkeypatch.setenv("VK_ICD_FILENAMES", "one.json")
    monkeypatch.setenv(vulkan._CHECKED, "")
    monkeypatch.setattr(vulkan, "_PROBE", "")
    vulkan.check_vulkan()
    monkeypatch.setattr(vulkan, "_PROBE", "raise SystemExit('broken')")
    vulkan.check_vulkan()
    monkeypatch.setenv("VK_ICD_FILENAMES", "other.json")
    with pytest.raises(UserError, match="broken"):
        vulkan.check_vulkan()
    assert os.environ[vulkan._CHECKED] == "drivers one.json"
