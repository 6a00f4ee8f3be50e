"""Which run goes on."""

from pathlib import Path

import pytest

from vla_rl.config.compose import compose, save_resolved
from vla_rl.run.resume import resume_folder

TINY = "conf=pcm_object_tiny"


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """Unfinished runs of seeds 1, 2 and 1, the oldest first, and one of seed 2 that has ended."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 1), ("b", 2), ("c", 1), ("d", 2)):
        folder = Path("runs", "pcm_object_tiny", name)
        folder.mkdir(parents=True)
        save_resolved(compose([TINY, f"seed={seed}"]), folder / "config.yaml")
    (folder / "summary.json").touch()
    return Path("runs", "pcm_object_tiny")


@pytest.mark.parametrize(("seed", "name"), [(1, "c"), (2, "b"), (3, None)])
def test_auto_takes_the_newest_unfinished_run_of_the_same_seed(begun, seed, name):
    found = resume_folder(compose([TINY, f"seed={seed}", "resume=auto"]))
    assert found == (name and begun / name)


def test_without_resume_a_run_is_new(begun):
    assert resume_folder(compose([TINY])) is None
