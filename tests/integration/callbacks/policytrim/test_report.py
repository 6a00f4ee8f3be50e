"""What PolicyTrim reports: success, steps and calls at each window, lines, file and figures."""

from __future__ import annotations

import json
import math

import pytest
from matplotlib.image import imread

from callbacks.monitors.run_plot import RunPlot
from callbacks.policytrim.callback import PolicyTrim
from callbacks.policytrim.figures import draw_reward, draw_steps, draw_windows
from callbacks.policytrim.report import TrimReport
from tests.helpers.toy import ToyPool
from tests.helpers.trim_fit import BOTH, fit, rows, weights
from vla_rl.evaluation.windows import WindowResult
from vla_rl.functional.statistics import SuccessRate


def test_what_is_said_of_a_window():
    result = WindowResult(window=8, states=((1, 1), (1, 1), (0, 1), (1, 1)), steps=(90, 96, 97))
    assert result.success == SuccessRate.of(3, 4)
    assert result.mean_steps == pytest.approx(283 / 3)
    # deviations -4.333 1.667 2.667: variance 28.667 / 2, of the mean a third of that; t(.975, 2) = 4.302653
    assert result.steps_margin == pytest.approx(4.302653 * math.sqrt(28.6667 / 2 / 3), rel=1e-5)
    assert result.calls == pytest.approx((12 + 12 + 13) / 3)  # 96 is 12 windows exactly
    assert WindowResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert str(result).endswith("(3/4), 94.3 +- 9.4 steps and 12.3 calls of a success")
    one = WindowResult(window=8, states=((1, 4),), steps=(90,))
    assert str(one).endswith("(1/4), 90.0 steps and 12.0 calls of a success")  # nothing to take a spread of


def test_several_episodes_of_a_state_do_not_count_as_independent():
    twice = WindowResult(window=8, states=((2, 2), (2, 2), (1, 2), (0, 2)), steps=(90, 91, 92, 93, 94))
    assert twice.success == SuccessRate.of_clusters([(2, 2), (2, 2), (1, 2), (0, 2)])
    assert twice.success.wilson_low < SuccessRate.of(5, 8).wilson_low


def test_what_a_former_version_stored():
    old = WindowResult.from_dict({"window": 8, "episodes": 4, "steps": [90, 96, 97]})
    assert (old.success, old.steps) == (SuccessRate.of(3, 4), (90, 96, 97))


def test_a_window_without_success():
    result = WindowResult(window=8, states=((0, 2),), steps=())
    assert math.isnan(result.mean_steps)
    assert math.isnan(result.steps_margin)
    assert math.isnan(result.calls)
    assert str(result) == "window 8: success 0.000 [0.000, 0.793] (0/2)"  # of one state


def test_before_between_and_after_on_the_same_heldout_episodes(tmp_path, capsys):
    pool, report = ToyPool(), TrimReport(episodes=10)
    fit(tmp_path, PolicyTrim(extend_iterations=1, **BOTH), report, pool=pool, iterations=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if "held-out, sampled, window" in line]
    times = ["before training", "after stage 1", "after training"]
    assert [line.split(":")[0] for line in lines] == [when for when in times for _ in range(2)]
    content = json.loads((tmp_path / "windows.json").read_text())
    assert list(content) == times
    for when in times:
        assert [(r["window"], sum(of for _, of in r["states"])) for r in content[when]] == [(1, 10), (2, 10)]
        assert all(sum(won for won, _ in r["states"]) == len(r["steps"]) for r in content[when])
        assert all(4 <= s <= 12 for r in content[when] for s in r["steps"])
    keys = [(e.task, e.init_state, e.seed) for e in pool.started]
    # after S_base; when the second of two iterations has run its 20 episodes with the same policy; and at the end
    before, between, after = keys[8:28], keys[68:88], keys[-20:]
    assert sorted(before) == sorted(between) == sorted(after)
    assert len(set(before)) == 10
    assert len(keys) == 8 + 20 + 20 + 20 + 20 + 20
    assert [e.window for e in pool.started[8:28]] == [1] * 10 + [2] * 10
    assert content["before training"] == [r.to_dict() for r in report.results["before training"]]
    for name in ("steps", "windows", "trim_reward"):
        assert imread(tmp_path / "figures" / f"{name}.png").std() > 0.05


def test_a_run_that_ends_with_stage_1_is_measured_once_after_it(tmp_path):
    report = TrimReport(episodes=4)
    fit(tmp_path / "short", PolicyTrim(extend_iterations=1, **BOTH), report, iterations=1, save=True)
    assert list(report.results) == ["before training", "after training"]
    longer = TrimReport(episodes=4)
    trim = PolicyTrim(extend_iterations=1, **BOTH)
    fit(tmp_path / "long", trim, longer, iterations=2, resume=tmp_path / "short" / "last.ckpt")
    assert longer.results["after stage 1"] == report.results["after training"]


def test_a_resumed_run_keeps_what_was_measured_before(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    report = TrimReport(episodes=4)
    fit(first, PolicyTrim(baseline_episodes=2), report, iterations=1, save=True)
    pool, resumed = ToyPool(), TrimReport(episodes=4)
    fit(second, PolicyTrim(baseline_episodes=2), resumed, iterations=2, pool=pool, resume=first / "last.ckpt")
    assert resumed.results["before training"] == report.results["before training"]
    assert len(pool.started) == 20 + 4  # an iteration, and the end


def test_without_policytrim_the_whole_chunk_is_reported(tmp_path):
    fit(tmp_path, TrimReport(episodes=4), iterations=1)
    content = json.loads((tmp_path / "windows.json").read_text())
    assert [r["window"] for r in content["after training"]] == [2]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"steps.png", "windows.png"}


def test_the_report_changes_nothing(tmp_path):
    plain = fit(tmp_path / "plain", PolicyTrim(baseline_episodes=2))
    reported = fit(tmp_path / "reported", PolicyTrim(baseline_episodes=2), TrimReport(episodes=4))
    assert (weights(plain) == weights(reported)).all()
    assert rows(tmp_path / "plain") == rows(tmp_path / "reported")


def test_figures_of_extremes(tmp_path):
    none, one = WindowResult(8, ((0, 1),) * 5, ()), WindowResult(8, ((1, 1), *((0, 1),) * 4), (90,))
    for n, figure in enumerate(
        [draw_steps(none, none), draw_steps(one, one), draw_windows({"before": [none], "after": [one]})]
    ):
        figure.savefig(tmp_path / f"{n}.png")
    history = [{"reward": 0.5}, {"reward": 0.6, "reward_without_penalty": 0.7}]
    axes = draw_reward(history, []).axes[0]
    assert [list(line.get_xdata()) for line in axes.lines] == [[2], [2]]  # stage 2 alone
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.7], [0.6]]


def test_a_bad_number_of_episodes():
    with pytest.raises(ValueError, match="callbacks.trim_report.episodes=60"):
        TrimReport(episodes=0)


def test_a_run_that_was_killed_before_its_report_makes_it_when_it_is_resumed(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "callbacks.policytrim.report.draw_reward", lambda *given: drawn.append(given) or draw_reward(*given)
    )
    fit(tmp_path, PolicyTrim(baseline_episodes=2), TrimReport(episodes=4), RunPlot(), save=True)
    whole = json.loads((tmp_path / "windows.json").read_text())
    for path in (tmp_path / "windows.json", *(tmp_path / "figures").iterdir()):
        path.unlink()
    nothing_left = {"resume": tmp_path / "last.ckpt", "save": True}
    fit(tmp_path, PolicyTrim(baseline_episodes=2), TrimReport(episodes=4), RunPlot(), **nothing_left)
    assert json.loads((tmp_path / "windows.json").read_text()) == whole
    names = {"steps.png", "windows.png", "trim_reward.png", "success.png", "cost.png"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    assert drawn[0] == drawn[1]
    assert drawn[0][1]
