"""Every command of the README and of docs/ is taken by the program it names, and is marked where it needs a GPU."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.helpers.docs_commands import PAGES, ROOT, Command, commands, understood

FOUND = list(dict.fromkeys(commands()))
SMALL_FIT = "python -m vla_rl.fit conf=pcm_object_tiny"
SHORTER = (
    "iterations=1", "rollout.groups=2", "rollout.group_size=2", "grpo.minibatches=1", "sim.horizon=96", "sim.workers=2",
    "evaluation.sampled_episodes=1", "evaluation.greedy_episodes=1",
)  # fmt: skip


@pytest.fixture
def my_pkg(tmp_path, monkeypatch):
    """The python blocks of the pages that begin with `# my_pkg/<file>`, as a package on the path."""
    monkeypatch.syspath_prepend(tmp_path)
    for page in PAGES:
        for name, code in re.findall(r"```python\n# (my_pkg/\w+\.py)\n(.*?)```", page.read_text(), re.S):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(code)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "my_pkg"]:
        del sys.modules[name]


def test_the_search_finds_them():
    assert len(FOUND) >= 25
    assert {command.page for command in FOUND} >= {"README.md", "quick_start.md", "checkpoints.md", "methods.md"}


@pytest.mark.no_cover  # the same lines for every command
@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*")  # a program that a test has imported already
@pytest.mark.parametrize("command", FOUND, ids=str)
def test_the_program_takes_it(command, my_pkg, monkeypatch):
    config = understood(command, monkeypatch)
    if config is not None and config.trainer["accelerator"] == "gpu":
        assert "GPU" in command.comment, f"{command}: mark it as needing a GPU, in a comment"


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in FOUND if c.text.startswith(SMALL_FIT)], ids=str)
def test_the_small_runs_run_to_their_end(command, my_pkg, tmp_path):
    """As printed, but shorter: 4 episodes of 12 chunks."""
    if "logger=wandb" in command.text:
        pytest.importorskip("wandb", reason="optional: pip install wandb")
    printed = [a for a in shlex.split(command.text)[3:] if not a.startswith("run_dir=")]
    own = "reward." in command.text  # pays for success, of which there is none in so few steps
    reward = ["grpo.group_filter=keep"] if own else ["reward._target_=tests.helpers.tiny_fit.EverySecond"]
    program = [sys.executable, "-m", "vla_rl.fit", *printed, *SHORTER, *reward, f"run_dir={tmp_path / 'run'}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]), "WANDB_MODE": "offline"}
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").exists()
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["chunks/kept"] > 0


@pytest.mark.parametrize(
    "text",
    [
        "python -m vla_rl.fit conf=pcm_object_tiny mask.budgte=3",
        "python -m vla_rl.fit conf=pcm_object_tiny callbacks.mine._target_=my_pkg.nothing.Nothing",
        "python -m vla_rl.sft conf=no_such_conf",
        "python -m vla_rl.record taks=[0]",
        "python tools/no_such_tool.py",
        "python -m vla_rl.checkpoints.shipped",  # takes no arguments
        "make fti",
        'make fit ARGS="itrations=2"',
        "frobnicate --all",
        "docker build -t vla_rl .",  # not marked
    ],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*")
def test_a_wrong_one_is_noticed(text, my_pkg, monkeypatch, capsys):
    with pytest.raises(AssertionError):
        understood(Command("made_up.md", text, ""), monkeypatch)
    capsys.readouterr()
