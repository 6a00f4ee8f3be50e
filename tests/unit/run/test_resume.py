"""Which run goes on, from which checkpoint, and what becomes of newer ones."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from vla_rl.config.compose import compose, save_resolved
from vla_rl.errors import UserError
from vla_rl.run.resume import PARTS, checkpoint_to_resume, find_damage, resume_folder, set_aside_newer

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


def test_a_value_that_came_after_the_run_began_has_its_default(begun):
    stored = begun / "c" / "config.yaml"
    text = stored.read_text()
    assert "  normalise_by: kept\n" in text
    stored.write_text(text.replace("  normalise_by: kept\n", ""))
    with pytest.warns(UserWarning, match="without grpo.normalise_by=kept; it goes on with these defaults"):
        assert resume_folder(compose([TINY, f"resume={begun / 'c'}"])) == begun / "c"
    with pytest.raises(UserError, match="these differ: grpo.normalise_by "), pytest.warns(UserWarning):
        resume_folder(compose([TINY, f"resume={begun / 'c'}", "grpo.normalise_by=planned"]))


def test_without_resume_a_run_is_new(begun):
    assert resume_folder(compose([TINY])) is None


def test_keys_that_an_older_version_did_not_have_take_their_defaults(tmp_path):
    config = compose([TINY])
    save_resolved(config, tmp_path / "config.yaml")
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del stored["critic"], stored["grpo"]["epochs"], stored["mask"]["missing"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    own = f"conf={tmp_path / 'config.yaml'}"  # which lacks the mask's option as well
    for conf, added in (
        (TINY, "epochs=1, critic=None, mask.missing=carry"),
        (own, "epochs=1, critic=None"),
    ):
        line = f"without grpo.{added}; it goes on with these defaults"
        with pytest.warns(UserWarning, match=re.escape(line)):
            assert resume_folder(compose([conf, f"resume={tmp_path}"])) == tmp_path
    with pytest.raises(UserError, match="these differ: grpo.epochs, mask.missing "), pytest.warns(UserWarning):
        resume_folder(compose([TINY, f"resume={tmp_path}", "grpo.epochs=3", "mask.missing=floor"]))


@pytest.fixture
def ended(tmp_path) -> Path:
    """The folder of a run of five iterations that has ended; the third was the best."""
    run = tmp_path / "run"
    for folder in ("checkpoints", "policy"):
        (run / folder).mkdir(parents=True)
    save_resolved(compose([TINY]), run / "config.yaml")
    for name in ("metrics.jsonl", "summary.json", "success_before.json", "policy/model.safetensors"):
        (run / name).write_text(f"{name} after five iterations")
    for done in (3, 4, 5):
        torch.save(dict.fromkeys(PARTS, done), run / "checkpoints" / f"iteration-{done}.ckpt")
    for link, done in (("best", 3), ("last", 5)):
        (run / "checkpoints" / f"{link}.ckpt").symlink_to(f"iteration-{done}.ckpt")
    return run


def files(folder: Path) -> dict[str, bytes]:
    """The content of all files, by path in `folder`; links are followed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("given", "done"), [("last", 5), ("best", 3), ("iteration-4", 4)])
def test_a_link_stands_for_the_checkpoint_it_points_at(ended, given, done):
    config = compose([TINY, f"resume={ended}/checkpoints/{given}.ckpt"])
    assert resume_folder(config) == ended
    assert checkpoint_to_resume(config, ended) == ended / "checkpoints" / f"iteration-{done}.ckpt"


def test_what_is_newer_is_kept_and_is_a_run_to_go_on_with(ended, capsys):
    before = files(ended)
    set_aside_newer(ended, ended / "checkpoints" / "iteration-3.ckpt")
    aside = ended / "superseded" / "1"
    older = {"checkpoints/iteration-3.ckpt", "checkpoints/best.ckpt"}
    assert files(aside) == {name: content for name, content in before.items() if name not in older}
    # the run itself stands at its third iteration again, has not ended, and has a policy meanwhile
    left = {name: content for name, content in files(ended).items() if not name.startswith("superseded")}
    newer = {"checkpoints/iteration-4.ckpt", "checkpoints/iteration-5.ckpt", "summary.json"}
    assert left.keys() == before.keys() - newer
    assert (ended / "checkpoints" / "last.ckpt").readlink() == Path("iteration-3.ckpt")
    assert re.fullmatch(
        f"going on from iteration 3; .* up to iteration 5, is kept in {aside} .*\n", capsys.readouterr().out
    )
    again = compose([TINY, f"resume={aside}"])
    assert resume_folder(again) == aside
    assert checkpoint_to_resume(again, aside) == aside / "checkpoints" / "iteration-5.ckpt"


def test_each_time_has_a_folder_of_its_own(ended):
    for done in (4, 3):
        set_aside_newer(ended, ended / "checkpoints" / f"iteration-{done}.ckpt")
    there = sorted(str(path.relative_to(ended)) for path in ended.glob("superseded/*/checkpoints/iteration-*"))
    assert there == ["superseded/1/checkpoints/iteration-5.ckpt", "superseded/2/checkpoints/iteration-4.ckpt"]


@pytest.mark.parametrize("done", [5, None])
def test_from_the_newest_nothing_is_moved(ended, done, capsys):
    before = files(ended)
    set_aside_newer(ended, done and ended / "checkpoints" / f"iteration-{done}.ckpt")
    assert files(ended) == before
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "damage"),
    [
        *((dict.fromkeys(set(PARTS) - {part}, 0), f"it has no {part}") for part in PARTS),
        ([], "it has no epoch"),
        (torch.ones(2), "it has no epoch"),
        (dict.fromkeys(PARTS, 0), None),
    ],
)
def test_a_checkpoint_that_lacks_a_part(content, damage, tmp_path):
    torch.save(content, tmp_path / "iteration-1.ckpt")
    assert find_damage(tmp_path / "iteration-1.ckpt") == damage


def test_a_file_of_another_name_or_place_is_refused(ended):
    (ended / "checkpoints" / "mine.ckpt").touch()
    config = compose([TINY, f"resume={ended}/checkpoints/mine.ckpt"])
    with pytest.raises(UserError, match=f"^mine.ckpt does not say its iteration, .*: resume={ended}$"):
        checkpoint_to_resume(config, ended)
    (ended / "policy" / "iteration-3.ckpt").touch()
    with pytest.raises(UserError, match="holds no run to resume"):
        resume_folder(compose([TINY, f"resume={ended}/policy/iteration-3.ckpt"]))
