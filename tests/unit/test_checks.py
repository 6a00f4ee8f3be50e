"""Every check of an option: what it lets through, and its one line about everything else."""

import re
from functools import partial
from pathlib import Path

import pytest

from vla_rl.checks import (
    check_choice,
    check_count,
    check_flag,
    check_fraction,
    check_new_folder,
    check_number,
    check_writable_folder,
)
from vla_rl.errors import UserError

above_half = partial(check_number, above=0.5, most=2)
bounded = partial(check_number, least=-1, below=2)


@pytest.mark.parametrize(
    ("check", "good"),
    [
        (partial(check_count, example=3), [1, 7]),
        (partial(check_count, example=3, least=0), [0]),
        (partial(above_half, example=1), [0.6, 2, 2.0]),
        (partial(bounded, example=1), [-1, 1.9]),
        (partial(check_number, example=1), [-1e9]),
        (partial(check_fraction, example=0.5), [1e-9, 1]),
        (check_flag, [True, False]),
        (partial(check_choice, choices=("small", "large")), ["large"]),
    ],
)
def test_good_values(check, good):
    for value in good:
        check("mask.x", value)


@pytest.mark.parametrize(
    ("check", "bad", "allowed", "fix"),
    [
        (partial(check_count, example=3), [0, -1, 1.0, True, "2", None], "an integer >= 1", 3),
        (partial(check_count, example=3, least=0), [-1], "an integer >= 0", 3),
        (partial(check_count, example=3, most=5), [0, 6], "an integer >= 1 and <= 5", 3),
        (partial(above_half, example=1), [0.5, 2.1, float("nan"), True, "1"], "a number > 0.5 and <= 2", 1),
        (partial(bounded, example=1), [-1.1, 2, float("-inf")], "a number >= -1 and < 2", 1),
        (partial(check_number, example=1), [float("inf"), 10**400, "x"], "a number", 1),
        (partial(check_fraction, example=0.5), [0, 1.01], "a number > 0 and <= 1", 0.5),
        (check_flag, [0, "true", None], "true or false", "true"),
        (partial(check_flag, example=False), [1], "true or false", "false"),
    ],
)
def test_bad_values(check, bad, allowed, fix):
    for value in bad:
        message = f"mask.x must be {allowed}, got {value!r} (mask.x={fix})"
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            check("mask.x", value)


def test_a_choice_is_one_of_its_names():
    message = "no x named 'larg'; did you mean 'large'? Choices: small, large (mask.x=large)"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        check_choice("mask.x", "larg", ("small", "large"))


def test_a_new_folder_is_not_there_and_could_be(tmp_path):
    check_new_folder("out", tmp_path / "a" / "b", "x")
    assert (tmp_path / "a").is_dir() and not (tmp_path / "a" / "b").exists()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("a", "file", "link"):
        with pytest.raises(UserError, match=rf"^out={tmp_path}/{name} exists; give a new folder: out=.*/{name}-2$"):
            check_new_folder("out", tmp_path / name, "x")
    for folder, why in (("file/x", "Not a directory"), ("n" * 300, "File name too long")):
        with pytest.raises(UserError, match=rf"^cannot write out=.*{folder}: {why}; name another folder: out=x$"):
            check_new_folder("out", tmp_path / folder, "x")


def test_a_writable_folder_may_be_there(tmp_path):
    for folder in (tmp_path, tmp_path / "a" / "b"):
        check_writable_folder("out", folder, "x")
        assert folder.is_dir() and not [path for path in folder.iterdir() if path.is_file()]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="^cannot write out=.*file: File exists; name another folder: out=x$"):
        check_writable_folder("out", tmp_path / "file", "x")
    with pytest.raises(UserError, match="^cannot write out=/proc: No such file or directory; name"):
        check_writable_folder("out", Path("/proc"), "x")
