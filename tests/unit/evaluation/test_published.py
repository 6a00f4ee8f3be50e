"""The table of published policies: rows that run, rows that cannot, and a list whose every command is understood."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from vla_rl.config.compose import compose, own_options
from vla_rl.config.instantiate import check
from vla_rl.config.schema import EvaluateConfig
from vla_rl.errors import UserError
from vla_rl.evaluation.plan import plan_evaluation
from vla_rl.evaluation.published import evaluate_published, published
from vla_rl.functional.statistics import SuccessRate

ROWS = published(None)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_an_evaluation(row):
    options, rest = own_options(EvaluateConfig, row.run)
    config = compose(rest)
    check(config)
    plan = plan_evaluation(config, options, given=[])
    assert row.suite.split(",")[0] == plan.sim["suite"]
    assert row.reported is None or 0 < row.reported <= 100
    assert (row.reported is None) == (row.source is None)
    if row.source and row.source.startswith("arXiv"):
        assert plan.protocol in ("oft", "simplevla")
        assert len(range(*plan.init_states)) * 10 == 500


def evaluate(argv):
    """In the place of `vla_rl.evaluate`: one row succeeds in 3 of 4 episodes, the others are out of reach."""
    given = dict(argument.split("=", 1) for argument in argv)
    if given.get("checkpoint") != "shipped:object_tiny":
        raise UserError("missing checkpoint 'x/y':\nno such folder")
    assert given["sim.workers"] == "2"
    folder = Path(given["run_dir"])
    folder.mkdir(parents=True)
    (folder / "timing.json").write_text(json.dumps({"A": {"wait_s": 1.0, "infer_s": 1.0, "total_s": 8.0}}))
    report = {
        "rules": {"protocol": "heldout", "decoding": "greedy"},
        "versions": {"mujoco": "3.3.2"},
        "checkpoints": [{"label": "A", "overall": asdict(SuccessRate.of(3, 4))}],
        "episodes": [{}] * 4,
    }
    (folder / "report.json").write_text(json.dumps(report))


def test_the_table_has_what_was_measured_and_why_something_was_not(tmp_path):
    argv = ["conf=published", "names=[object_tiny,oft_l1_goal]", "sim.workers=2", f"run_dir={tmp_path / 'table'}"]
    page = evaluate_published(["object_tiny", "oft_l1_goal"], argv, evaluate)
    head, _, tiny, goal = page.read_text().splitlines()
    assert head.startswith("| name | family | suite | protocol | reported | measured | MuJoCo | episodes/s |")
    # Wilson, 3 of 4: centre (.75 + 3.8415 / 8) / (1 + 3.8415 / 4) = .628, half .327
    assert tiny.endswith("| heldout, greedy | 23.0 | 75.0 [30.1, 95.4] of 4 | 3.3.2 | 0.50 | docs/results.md, seed 1 |")
    assert "| 97.9 | not run: missing checkpoint 'x/y': no such folder |" in goal
    rows = json.loads((tmp_path / "table" / "published.json").read_text())
    assert [row["name"] for row in rows] == ["object_tiny", "oft_l1_goal"]
    assert rows[0]["success"]["successes"] == 3 and rows[1]["success"] is None


def test_a_row_that_the_list_does_not_have():
    with pytest.raises(UserError, match="conf=published has no row 'object_tny'; did you mean 'object_tiny'"):
        published(["object_tny"])
