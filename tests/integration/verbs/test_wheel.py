"""The wheel, away from the source tree: what it holds, and that it works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)], folder)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    offline = ["--no-index", "--no-deps"]
    run([sys.executable, "-m", "pip", "install", *offline, "--target", str(folder), str(wheel)], folder)
    return folder


def run(command: list[str], cwd: Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(installed: Path, *arguments: str) -> str:
    """What Python prints in another folder, with the installed wheel before the source tree, and nothing of `cwd`."""
    return run([sys.executable, "-P", *arguments], installed.parent, PYTHONPATH=str(installed))


def test_it_holds_the_packages_confs_and_checkpoints_and_nothing_else(wheel):
    names = set(ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"vla_rl", "callbacks", "vla_rl-0.2.0.dist-info"}
    kept = {".py", ".yaml", ".json", ".safetensors", ".npz", ".j2", ".typed"}
    assert {Path(name).suffix for name in names if not name.startswith("vla_rl-")} == kept
    for source, place in (("vla_rl", "vla_rl"), ("callbacks", "callbacks"), ("conf", "vla_rl/conf")):
        files = [path.relative_to(ROOT / source) for path in (ROOT / source).rglob("*") if path.is_file()]
        files = {f"{place}/{path.as_posix()}" for path in files if "__pycache__" not in path.parts}
        assert files
        assert files <= names


def test_help_lists_the_confs(installed):
    printed = python(installed, "-m", "vla_rl.fit", "--help")
    assert "conf=    base, pcm_goal, pcm_goal_tiny, pcm_object, pcm_object_tiny," in printed
    assert "mask=    entropy, full_padded, global, none, pcm, pcm_paper_literal, random," in printed


def test_it_composes_and_loads_what_it_ships(installed):
    script = """
import json
import callbacks.masks.pcm, vla_rl
from vla_rl.config.instantiate import build, build_callbacks
from vla_rl.config.compose import compose
config = compose(["conf=pcm_object_tiny"])
mask, *_ = build_callbacks(config)
policy = build(config.policy, "policy")
files = [vla_rl.__file__, callbacks.masks.pcm.__file__]
print(json.dumps([files, mask.budget.of(100), config.mask["budget"], policy.chunk_steps]))
"""
    files, built, composed, chunk_steps = json.loads(python(installed, "-c", script))
    assert files == [str(installed / "vla_rl" / "__init__.py"), str(installed / "callbacks" / "masks" / "pcm.py")]
    assert built == composed
    assert chunk_steps == 8
