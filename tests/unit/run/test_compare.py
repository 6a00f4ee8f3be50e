"""Comparing finished runs: names, thresholds, pooled success, the table and the figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from matplotlib.colors import to_hex

from callbacks.monitors.run_plot import RunPlot
from callbacks.monitors.save_figures import draw_arms, draw_cost, draw_success
from tests.helpers.make import train
from vla_rl.config.compose import compose, group_names
from vla_rl.errors import UserError
from vla_rl.functional.statistics import SuccessRate
from vla_rl.run.compare import Run, arms, mask_name, pooled, table

ROOT = Path(__file__).parents[3]


def write_run(folder, *, mask="mask=pcm", seed=1, rates=(0.2, 0.4, 0.6, 0.8), after=(8, 10), update_s=1.0, **extra):
    """A run folder as fit.py leaves it."""
    folder.mkdir(parents=True)
    config = compose(["conf=pcm_object_tiny", *mask.split()])
    (folder / "config.yaml").write_text(yaml.safe_dump({"mask": config.mask, "seed": seed}))
    rows = [
        {"iteration": i, "rollout/success": rate, "time/rollout_s": 3.0, "time/update_s": update_s,
         "chunks/kept": 50.0, "chunks/real": 200.0} | extra
        for i, rate in enumerate(rates)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rate = lambda successes, episodes: {  # noqa: E731
        "rate": successes / episodes,
        "successes": successes,
        "episodes": episodes,
    }
    summary = {"success_before": {"sampled": rate(1, 10)}, "success_after": {"sampled": rate(*after)}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.mark.parametrize("name", [name for name in group_names("mask")])
def test_a_mask_is_known_by_its_options_whatever_its_budget(name):
    budget = [] if name in ("none", "full_padded") else ["mask.budget=3"]
    assert mask_name(compose(["conf=pcm_object_tiny", f"mask={name}", *budget]).mask) == name


def test_a_mask_with_other_options_is_known_by_its_class():
    assert mask_name(compose(["conf=pcm_object_tiny", "mask=pcm", "mask.floor=0.3"]).mask) == "PCM"


def test_arms_are_masks_with_their_budgets(tmp_path):
    runs = [
        Run.read(write_run(tmp_path / "a", mask="mask=pcm mask.budget=8", seed=1)),
        Run.read(write_run(tmp_path / "b", mask="mask=none")),
        Run.read(write_run(tmp_path / "c", mask="mask=pcm mask.budget=8", seed=2)),
        Run.read(write_run(tmp_path / "d", mask="mask=pcm mask.budget.fraction=0.5")),
    ]
    assert {arm: [run.seed for run in members] for arm, members in arms(runs).items()} == {
        "pcm B=8": [1, 2], "none": [1], "pcm fraction=0.5": [1]
    }  # fmt: skip


def test_time_to_a_threshold(tmp_path):
    run = Run.read(write_run(tmp_path / "a"))
    # means of up to three: .2 .3 .4 .6; four seconds an iteration
    assert [rate for _, rate in run.success] == pytest.approx([0.2, 0.3, 0.4, 0.6])
    assert (run.seconds_to(0.4), run.seconds_to(0.6), run.seconds_to(0.7)) == (12.0, 16.0, None)
    assert run.update_seconds == [1.0, 2.0, 3.0, 4.0]


def test_held_out_success_counts_where_it_was_measured(tmp_path):
    run = Run.read(write_run(tmp_path / "a", **{"heldout/sampled_success": 0.9}))
    assert run.success == [(1, 0.9), (2, 0.9), (3, 0.9), (4, 0.9)] and run.seconds_to(0.9) == 4.0


def test_success_is_pooled_over_seeds(tmp_path):
    runs = [Run.read(write_run(tmp_path / str(seed), seed=seed, after=(seed, 10))) for seed in (3, 6)]
    assert pooled(runs, "success_after", "sampled") == SuccessRate.of(9, 20)
    assert pooled(runs, "success_after", "greedy") is None


def test_table(tmp_path):
    runs = [Run.read(write_run(tmp_path / str(seed), seed=seed, update_s=float(seed))) for seed in (1, 2)]
    row = table(runs).splitlines()[2]
    # 16 of 20: Wilson .584 to .919; 4 iterations of 50 of 200 chunks; update seconds 4 and 8
    assert row == "| pcm B=12 | 2 | 0.10 [0.03, 0.30] | 0.80 [0.58, 0.92] | - | 200 | 25% | 6.0 | 12.0 |"


def test_figures(tmp_path):
    budgets = [write_run(tmp_path / f"b{b}", mask=f"mask=pcm mask.budget={b}", after=(b, 20)) for b in (4, 8)]
    runs = [*map(Run.read, budgets), Run.read(write_run(tmp_path / "none", mask="mask=none"))]
    by_iteration, by_time = draw_success(runs).axes
    assert by_time.lines[0].get_xdata().tolist() == [4.0, 8.0, 12.0, 16.0]
    assert [text.get_text() for text in by_time.figure.legends[0].get_texts()] == ["pcm B=4", "pcm B=8", "none"]
    thresholds, memory, update = draw_cost(runs).axes
    assert thresholds.lines[0].get_xdata().tolist() == [0.3, 0.4, 0.5, 0.6]
    assert memory.texts[0].get_text() == "not measured"
    assert update.lines[0].get_ydata().tolist() == [1.0, 2.0, 3.0, 4.0]
    never = [
        Run.read(write_run(tmp_path / str(seed), seed=seed, **{"heldout/sampled_success": 0.1})) for seed in (1, 2)
    ]
    assert draw_cost(never).axes[0].texts[0].get_text() == "not reached"
    one, other, mean = draw_success(never).axes[0].lines[:3]
    assert one.get_alpha() == other.get_alpha() == 0.25 and mean.get_ydata().tolist() == pytest.approx([0.1] * 4)
    sweep, bars = draw_arms(runs).axes
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([4 / 20, 8 / 20, 8 / 10])
    assert sweep.lines[0].get_xdata().tolist() == [4, 8]
    assert to_hex(sweep.lines[0].get_color()) == to_hex(bars.patches[0].get_facecolor())
    (bars,) = draw_arms(runs[1:]).axes  # one budget is no sweep
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([8 / 20, 8 / 10])


def test_one_run_without_a_summary_yet(tmp_path):
    train(tmp_path, RunPlot())  # no metrics: nothing to draw
    assert not (tmp_path / "figures").exists()
    folder = write_run(tmp_path / "run")
    train(folder, RunPlot())
    assert {path.name for path in (folder / "figures").iterdir()} == {"success.png", "cost.png"}


def test_the_tool(tmp_path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", mask="mask=random")]
    command = [sys.executable, "tools/compare_runs.py", *map(str, folders), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "| random B=12 | 1 |" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"table.md", "success.png", "cost.png", "arms.png"}
    done = subprocess.run([*command[:2], str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {tmp_path} holds no finished run: it has no config.yaml (give the folders that fit.py names)"
    ]


def test_an_unfinished_run(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "summary.json").unlink()
    with pytest.raises(UserError, match=r"it has no summary.json"):
        Run.read(folder)
