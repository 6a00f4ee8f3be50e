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
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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


RUN_VERBS = """
import json, runpy, sys
for argv in json.loads(sys.argv[1]):
    sys.argv = argv
    try:
        runpy.run_module(f"vla_rl.{argv[0]}", run_name="__main__", alter_sys=True)
    except SystemExit as e:
        assert not e.code, f"{argv[0]} ended with {e.code}"
"""
SHORT = ["conf=pcm_object_tiny", "sim.horizon=16", "sim.workers=1", "sim.tasks=[0]"]
FIT = ["iterations=1", "rollout.groups=1", "rollout.group_size=2", "grpo.minibatches=1", "mask.budget=1"]
NO_EVALUATION = ["evaluation.sampled_episodes=0", "evaluation.greedy_episodes=0"]
RECORD = ["tasks=[0]", "init_states=[0,2]", "episodes_per_task=2", "placement_noise_m=0.01", "workers=1"]
VERBS = [
    ["record", "out=demos.npz", *RECORD],
    ["sft", "conf=sft_object_tiny", "sft.demos=demos.npz", "sft.steps=1", "run_dir=sft"],
    ["fit", *SHORT, *FIT, *NO_EVALUATION, "run_dir=fit"],
    ["evaluate", *SHORT, "checkpoint=[fit/policy,sft/policy]", "init_states=[10000,10001]", "run_dir=evaluate"],
    ["export", "checkpoint=fit/checkpoints/last.ckpt", "out=exported"],
    ["compare", "fit", "out=compare"],
    ["doctor", *SHORT, "policy.checkpoint=exported"],
]


def test_every_verb_runs_in_an_empty_folder(installed, tmp_path):
    """One after the other in one process, which imports torch and the simulator once."""
    command = [sys.executable, "-P", "-c", RUN_VERBS, json.dumps(VERBS)]
    printed = run(command, tmp_path, PYTHONPATH=str(installed))
    assert "8 pass, 0 warn, 0 fail" in printed
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {
        *("demos.npz", "sft/policy/model.safetensors", "fit/policy/model.safetensors", "fit/summary.json"),
        *("evaluate/report.html", "exported/model.safetensors", "compare/table.md"),
    } <= made
    assert (tmp_path / "exported" / "model.safetensors").read_bytes() == (
        tmp_path / "fit" / "policy" / "model.safetensors"
    ).read_bytes()


def test_the_script_runs_the_same_verbs(installed, tmp_path):
    script = [str(installed / "bin" / "vla-rl")]
    listed = run([*script, "--help"], tmp_path, PYTHONPATH=str(installed))
    for verb, *_ in VERBS:
        assert f"\n  {verb} " in listed
    printed = run([*script, "fit", "--help"], tmp_path, PYTHONPATH=str(installed))
    assert "conf=    base, pcm_goal, pcm_goal_tiny, pcm_metaworld_tiny, pcm_object," in printed
    assert "mask=    advantage, critic_choice, entropy, full_padded, global, global_advantage, none, pcm," in printed
