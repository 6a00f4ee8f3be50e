"""A mistake in a conf file of the user's is answered with the file that holds it."""

from pathlib import Path

import pytest

from vla_rl.config.sources import set_in
from vla_rl.errors import UserError
from vla_rl.run.cli import exit_codes

FLOOR = "mask.floor must be a number > 0 and <= 1, got 1.5 (mask.floor=0.1)"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """`mine.yaml`, which extends a file in another folder, which extends a packaged one."""
    (tmp_path / "mine.yaml").write_text(
        "extends: shared/parent.yaml\nseed: 7\nmask: {extends: pcm, floor: 1.5, colapse: mean}\nsim: pbject\n"
    )
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "parent.yaml").write_text(
        "extends: pcm_object_tiny\nseed: 5\nitrations: 9\ngrpo: {ratio: chunk, loss: nft}\nmask: {budget: 3}\n"
        "sim: {horizon: 64}\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("message", "argv", "expected"),
    [
        (FLOOR, [], "; mask.floor is set in {mine}"),
        (FLOOR, ["mask.floor=0.1"], ""),
        (FLOOR, ["mask=random"], ""),
        (FLOOR, ["mask._target_=my_pkg.Mask"], ""),
        (FLOOR, ["mask.budget=3"], "; mask.floor is set in {mine}"),
        (
            "PCM has no option 'colapse'; did you mean 'collapse'? (mask.collapse=...)",
            [],
            "; mask.colapse is set in {mine}",
        ),
        ("no sim named 'pbject'. Choices: libero_object (sim=libero_object)", [], "; sim is set in {mine}"),
        ("seed must be an integer >= 0, got -1 (seed=1)", [], "; seed is set in {mine}"),
        ("unknown key 'itrations'; did you mean 'iterations'?", [], "; itrations is set in {parent}"),
        (
            "grpo.loss=nft uses no log-probabilities, so that grpo.ratio=chunk would do nothing: grpo.ratio=token",
            [],
            "; grpo.ratio, grpo.loss are set in {parent}",
        ),
        # what `mine.yaml` replaces its parent does not set
        ("mask.budget must be an integer >= 1, got 0 (mask.budget=12)", [], ""),
        ("sim.horizon must be an integer >= 1, got 0 (sim.horizon=512)", [], ""),
        ("the mask keeps seed chunks of grpo.ratio_of and of a.grpo.ratio and of grpo.ratio.x", [], ""),
        ("optim.lr must be a number > 0, got 0.0 (optim.lr=1e-05)", [], ""),
    ],
)
def test_the_file_of_what_a_message_names(own: Path, message: str, argv: list[str], expected: str) -> None:
    files = {"mine": own / "mine.yaml", "parent": own / "shared" / "parent.yaml"}
    assert set_in(message, [f"conf={own}/mine.yaml", *argv]) == expected.format(**files)


def test_a_mistake_with_its_files(own: Path) -> None:
    (own / "shared" / "parent.yaml").write_text("extends: ../mine.yaml\nmask.floor: 3\noptim: {lr: 0}\n")
    said = set_in(f"{FLOOR} optim.lr=1", [f"conf={own}/mine.yaml"])
    assert said == f"; mask.floor is set in {own}/mine.yaml; optim.lr is set in {own}/shared/parent.yaml"


@pytest.mark.parametrize("content", [b"", b"\xff", b"- 1\n", b"mask: [\n"])
def test_without_a_file_that_can_be_read_the_message_stands_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    for conf in (f"{tmp_path}/mine.yaml", f"{tmp_path}/none.yaml", str(tmp_path), "pcm_object_tiny"):
        assert set_in(FLOOR, [f"conf={conf}"]) == ""


def test_entries_name_the_file(own: Path, capsys) -> None:
    with pytest.raises(SystemExit), exit_codes(["seed=1", f"conf={own}/mine.yaml"]):
        raise UserError(FLOOR)
    assert capsys.readouterr().err == f"error: {FLOOR}; mask.floor is set in {own}/mine.yaml\n"
