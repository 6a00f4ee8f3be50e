"""What `versions.json` says."""

import re
import subprocess
from importlib import metadata

import pytest
import torch

from vla_rl.run import provenance
from vla_rl.run.provenance import source_state, versions


def test_versions_are_the_installed_ones(monkeypatch):
    found = versions()
    assert found["torch"] == torch.__version__  # with the build: +cpu, +cu130
    assert found["mujoco"] == metadata.version("mujoco")
    assert re.fullmatch(r"3\.\d+\.\d+", found["python"])

    def missing(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr("vla_rl.run.provenance.metadata.version", missing)
    assert versions()["mujoco"] == "not installed"
    assert versions()["torch"] == torch.__version__


def git(folder, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "code.py").write_text("one\n")
    git(folder, "init", "-q")
    git(folder, "add", "code.py")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_a_clean_checkout(checkout):
    assert source_state(checkout) == {"git": {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False}}


def test_what_differs_from_the_commit_is_kept(checkout, monkeypatch):
    (checkout / "code.py").write_text("two\n")
    state = source_state(checkout)["git"]
    assert state["dirty"]
    assert "-one\n+two\n" in state["diff"]
    monkeypatch.setattr(provenance, "LARGEST_DIFF", 10)
    assert source_state(checkout)["git"] == {"commit": state["commit"], "dirty": True}


def test_a_file_that_git_does_not_know_is_a_difference(checkout):
    (checkout / "new.py").touch()
    assert source_state(checkout)["git"]["dirty"]


def test_where_there_is_no_checkout_nothing_is_said(checkout, tmp_path, monkeypatch):
    assert source_state(tmp_path) == {}
    (checkout / "site-packages").mkdir()
    assert source_state(checkout / "site-packages") == {}  # installed inside another project's checkout
    monkeypatch.setenv("PATH", "")
    assert source_state(checkout) == {}
