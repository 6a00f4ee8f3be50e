"""Booting LIBERO: suite facts without importing it, assets, and no question on stdin."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vla_rl.errors import UserError
from vla_rl.sim.cache import make_folder
from vla_rl.sim.libero import suites


@pytest.mark.parametrize(("suite", "count"), [("object", 10), ("spatial", 10), ("goal", 10), ("10", 10), ("90", 90)])
def test_every_task_has_its_files(suite, count):
    assert len(suites.task_names(suite)) == count
    assert all(suites.bddl_file(suite, task).is_file() for task in range(count))


@pytest.mark.parametrize(
    ("suite", "task", "instruction"),
    [
        ("object", 9, "pick up the orange juice and place it in the basket"),
        ("goal", 0, "open the middle drawer of the cabinet"),
        ("10", 2, "turn on the stove and put the moka pot on it"),  # KITCHEN_SCENE3_turn_on...
        ("90", 4, "put the butter at the front in the top drawer of the cabinet and close it"),  # KITCHEN_SCENE10_...
    ],
)
def test_instructions_are_those_of_liberos_benchmark(suite, task, instruction):
    assert suites.language(suite, task) == instruction


def test_official_initial_states():
    states = suites.official_init_states("object", 0)
    assert states.shape == (50, 110)
    assert states.dtype == np.float64
    assert not states.flags.writeable


@pytest.mark.parametrize("suite", ["object", "10"])
def test_initial_states_are_what_torch_reads(suite):
    import torch

    name = suites.task_names(suite)[1]
    path = suites._package_dir() / "init_files" / suites.SUITES[suite] / f"{name}.pruned_init"
    np.testing.assert_array_equal(suites.official_init_states(suite, 1), torch.load(path, weights_only=False))


def test_an_initial_state_file_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "a.pruned_init"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(CodeInside(tmp_path / "ran")))
    with pytest.raises(UserError, match="a.pruned_init cannot be read: it names pathlib.*it was tampered with"):
        suites._read_init_states(path)
    assert not (tmp_path / "ran").exists()


class CodeInside:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_published_horizons():
    assert {suite: suites.horizon(suite) for suite in suites.SUITES} == {
        "object": 280,
        "spatial": 220,
        "goal": 300,
        "10": 520,
        "90": 400,
    }


def run(script: str, **env: str) -> subprocess.CompletedProcess:
    """In a fresh interpreter, with stdin closed: a question would fail."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "VLA_RL_GL_CHECKED")} | env
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment
    )


def test_facts_import_neither_libero_nor_the_simulator():
    done = run(
        "import sys; from vla_rl.sim.libero import suites; suites.check_task('object', 3); suites.language('10', 3)\n"
        "print(sorted({'libero', 'robosuite', 'mujoco', 'torch', 'numba'} & set(sys.modules)))"
    )
    assert done.stdout == "[]\n", done.stderr


def test_concurrent_first_boots_ask_nothing_and_say_nothing(tmp_path):
    boot = "from vla_rl.sim.libero import suites; suites.boot('standin')"
    script = f"{boot}; import os; print(os.environ['LIBERO_CONFIG_PATH'])"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    for process in both:
        output, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
        assert output == f"{tmp_path}/vla_rl/libero_config\n"
    assert sorted(os.listdir(tmp_path / "vla_rl" / "libero_config")) == ["config.yaml"]  # no temporary file is left


def test_boots_whatever_cuda_devices_are_visible_and_writes_no_log_that_the_next_user_cannot_open():
    done = run(
        "from vla_rl.sim.libero import suites; suites.boot('standin'); import os, logging\n"
        "loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]\n"
        "files = [h for logger in loggers for h in logger.handlers if isinstance(h, logging.FileHandler)]\n"
        "print(files, os.environ['CUDA_VISIBLE_DEVICES'])",
        CUDA_VISIBLE_DEVICES="3",
        MUJOCO_EGL_DEVICE_ID="0",
    )
    assert (done.stdout, done.stderr) == ("[] 3\n", "")


@pytest.mark.parametrize("call", ["suites.resolve_assets('standin')", "suites._write_config()"])
def test_a_cache_that_cannot_be_written_is_one_line(call):
    done = run(f"from vla_rl.sim.libero import suites; {call}", XDG_CACHE_HOME="/dev/null/x")
    error = done.stderr.strip().splitlines()[-1]
    assert "UserError: the cache cannot be written: /dev/null/x/vla_rl" in error
    assert "Not a directory" in error
    assert "fix: set XDG_CACHE_HOME" in error


def test_a_cache_of_somebody_else_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("vla_rl.sim.cache.os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="Permission denied.*fix: set XDG_CACHE_HOME"):
        make_folder(tmp_path)


def test_a_folder_that_hides_libero_is_named(tmp_path, monkeypatch):
    (tmp_path / "libero").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert suites._package_dir().is_dir()  # without __init__.py it hides nothing
    (tmp_path / "libero" / "__init__.py").touch()
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "libero", raising=False)
    with pytest.raises(UserError, match=rf"the folder {tmp_path}/libero hides the LIBERO .*python -P -m vla_rl.fit"):
        suites._package_dir()


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (
            "libero_goal_swap",
            "'libero_goal_swap': variants of suite 'goal' are LIBERO-Pro's.*e.g. sim.suite=pro:goal_swap",
        ),
        ("libero_10_lan", "variants of suite '10'.*e.g. sim.suite=pro:10_lan"),
        ("libero_object", "did you mean 'object'"),
        ("libero_mix", r"'libero_mix'\. Allowed: object, spatial"),
    ],
)
def test_suites_of_other_benchmarks_get_no_misleading_hint(suite, message):
    with pytest.raises(UserError, match=message):
        suites.check_suite(suite)


def test_assets_folder_must_hold_liberos_layout(tmp_path: Path):
    (tmp_path / "scenes").mkdir()
    with pytest.raises(UserError, match="has no stable_hope_objects, stable_scanned_objects, textures;.*standin"):
        suites.resolve_assets(tmp_path)


def test_hub_that_cannot_be_reached_names_the_alternatives():
    script = (
        "from vla_rl.sim.libero import suites\n"
        "suites._import_libero()\n"
        "import libero.libero.utils.download_utils as hub\n"
        "def offline(): raise ConnectionError('no route')\n"
        "hub.download_assets_from_huggingface = offline\n"
        "from vla_rl.sim.libero import suites\n"
        "suites.resolve_assets('hub')"
    )
    assert "sim.assets=standin, or sim.assets=FOLDER" in run(script).stderr.splitlines()[-1]
