"""The lines at the end of a run, from numbers written down here."""

from __future__ import annotations

import json

import pytest

from vla_rl.errors import UserError
from vla_rl.run.summary import run_report

RATE = {"rate": 0.5, "wilson_low": 0.404, "wilson_high": 0.596}
SUMMARY = {
    "conf": "mine",
    "seed": 3,
    "seconds": 300.0,
    "success_before": {"sampled": RATE, "greedy": RATE},
    "success_after": {"sampled": RATE | {"rate": 0.75}, "greedy": RATE},
}


def row(success: float, seconds: dict[str, float], host_mb: float) -> dict[str, float]:
    split = {f"split/{part}_s": value for part, value in seconds.items()}
    return split | {
        "rollout/success": success,
        "chunks/kept": 30.0,
        "chunks/real": 120.0,
        "memory/host_mb": host_mb,
        "time/iteration_s": sum(seconds.values()),
    }


def write(folder, rows: list[dict[str, float]]) -> None:
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_a_run_did(tmp_path):
    seconds = {"simulate": 30.0, "infer": 6.0, "preprocess": 3.0, "update": 60.0, "idle": 21.0}
    write(tmp_path, [row(0.4, seconds, 1500.0), row(0.6, seconds, 2540.0)])
    assert run_report(tmp_path).splitlines() == [
        "run mine, seed 3",
        "  held out  sampled 0.50 [0.40, 0.60] -> 0.75 [0.40, 0.60], greedy 0.50 [0.40, 0.60] -> 0.50 [0.40, 0.60]",
        "  rollouts  2 iterations, success 0.40 in the first and 0.60 in the last",
        "  chunks    60 trained on, 240 executed (25%)",
        # of 120 s an iteration
        "  time      5.0 min in all, 4.0 min in iterations: "
        "update 50%, simulate 25%, idle 18%, infer 5%, preprocess 2%",
        "  memory    host 2.5 GB",
        f"  look at   tensorboard --logdir {tmp_path}",
    ]


def test_success_elsewhere(tmp_path):
    write(tmp_path, [])
    elsewhere = {"decoding": "greedy", "before": RATE, "after": RATE | {"rate": 0.55}}
    (tmp_path / "elsewhere.json").write_text(json.dumps(elsewhere))
    assert run_report(tmp_path).splitlines()[2] == "  elsewhere greedy 0.50 [0.40, 0.60] -> 0.55 [0.40, 0.60]"


def test_what_was_not_measured_is_left_out(tmp_path):
    write(tmp_path, [])
    lines = run_report(tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == ["run", "held", "time", "look"]
    assert lines[2] == "  time      5.0 min in all"


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
def test_a_damaged_file_is_named(tmp_path, name):
    write(tmp_path, [row(0.4, {}, 1500.0)])
    content = (tmp_path / name).read_text()
    (tmp_path / name).write_text(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"^{tmp_path}/{name} is not valid JSON"):
        run_report(tmp_path)
