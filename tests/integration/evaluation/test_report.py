"""The three forms of a report say the same, and the page needs nothing beside it."""

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from vla_rl.evaluation.report import Arm, Report, write_report
from vla_rl.evaluation.report_figures import draw_outcomes, draw_tasks
from vla_rl.functional.statistics import PairedTest, SuccessRate
from vla_rl.types import Episode

EPISODES = [Episode(uid=i, task=(3, 5)[i % 2], init_state=40 + i // 2, seed=i) for i in range(8)]
A = Arm("A", "start <&>", 8, [True, False] * 4, [10, 20] * 4)  # task 3 succeeds, task 5 fails
B = Arm("B", "end", 8, [True, True, True, True, True, False, False, False], [12] * 8)


def report(*arms: Arm) -> Report:
    return Report(
        rules={"protocol": "heldout", "decoding": "greedy"},
        simulator={"camera_px": 128},
        remarks=["Not comparable."],
        instructions={3: "put the soup away", 5: "open the drawer"},
        episodes=EPISODES,
        arms=list(arms),
        versions={"mujoco": "3.3.2"},
    )


def write(folder, *arms):
    folder.mkdir()
    figures = [("tasks", "By task", draw_tasks(report(*arms))), ("outcomes", "All", draw_outcomes(report(*arms)))]
    return write_report(report(*arms), folder, figures, ["videos/A/a.mp4"])


def test_json_counts_by_task_and_overall(tmp_path):
    write(tmp_path / "r", A, B)
    found = json.loads((tmp_path / "r" / "report.json").read_text())
    a, b = found["checkpoints"]
    assert (a["checkpoint"], a["overall"]["successes"], a["overall"]["episodes"]) == ("start <&>", 4, 8)
    assert a["overall"]["rate"] == 0.5
    assert (a["window"], a["steps_of_successes"], a["calls_of_successes"]) == (8, 10.0, 2.0)
    assert (b["steps_of_successes"], b["calls_of_successes"]) == (12.0, 2.0)
    # Wilson for 4 of 8: centre .5, half = 1.96 sqrt(.25/8 + 3.84/256) / (1 + 3.84/8) = .28478
    assert a["overall"]["wilson_low"] == pytest.approx(0.21522, abs=1e-4)
    assert [(t["task"], t["instruction"], t["successes"], t["episodes"]) for t in a["tasks"]] == [
        (3, "put the soup away", 4, 4), (5, "open the drawer", 0, 4)
    ]  # fmt: skip
    assert [t["successes"] for t in b["tasks"]] == [3, 2]
    (test,) = found["against_A"]
    # A: 1 0 1 0 1 0 1 0, B: 1 1 1 1 1 0 0 0 -> gained at 1 and 3, lost at 6; p = 2 (1 + 3) / 2^3 = 1
    assert (test["label"], test["gained"], test["lost"], test["difference"]) == ("B", 2, 1, 0.125)
    assert test["p_value"] == pytest.approx(1.0)
    assert found["episodes"][6] == {
        "task": 3, "init_state": 43, "seed": 6, "success": {"A": True, "B": False}, "steps": {"A": 10, "B": 12}
    }  # fmt: skip


def test_markdown_has_a_row_per_task(tmp_path):
    write(tmp_path / "r", A, B)
    text = (tmp_path / "r" / "report.md").read_text()
    assert "| task | A | B |\n|---|---|---|\n" in text
    assert "| 3 put the soup away | 1.000 [0.510, 1.000] 4/4 | 0.750 [0.301, 0.954] 3/4 |" in text
    assert "| overall | 0.500 [0.215, 0.785] 4/8 | 0.625 [0.306, 0.863] 5/8 |" in text
    assert re.search(r"\| B \| 0\.625 \[0\.306, 0\.863\] 5/8 \| \+0\.125 \[.*\] \| 2 \| 1 \| 1 \|", text)
    assert "remark: Not comparable." in text


class References(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, value) for name, value in attrs if name in ("src", "href")]


def test_the_page_needs_nothing_beside_it(tmp_path):
    page = write(tmp_path / "r", A, B).read_text()
    references = References()
    references.feed(page)
    pictures = [value for tag, value in references.found if tag == "img"]
    assert len(pictures) == 2
    assert all(p.startswith("data:image/png;base64,iVBOR") for p in pictures)
    assert [value for tag, value in references.found if tag != "img"] == ["videos/A/a.mp4"]  # links alone
    assert "<link" not in page
    assert "<script" not in page
    assert "url(" not in page
    assert "start &lt;&amp;&gt;" in page
    assert "start <&>" not in page
    assert "<h2>Against A</h2>" in page
    success_of_b = "0.625 [0.306, 0.863] 5/8"
    assert f'<tr><td>B</td><td class="number">{success_of_b}</td><td class="number">+0.125' in page
    assert "Not comparable." in page


def test_one_checkpoint_is_compared_with_nothing(tmp_path):
    page = write(tmp_path / "r", A)
    assert "Against A" not in page.read_text()
    assert "Against A" not in (tmp_path / "r" / "report.md").read_text()
    assert json.loads((tmp_path / "r" / "report.json").read_text())["against_A"] == []


def test_the_same_evaluation_writes_the_same_bytes(tmp_path):
    names = {"report.html", "report.md", "report.json", "figures/tasks.png", "figures/outcomes.png"}
    for folder in ("one", "two"):
        write(tmp_path / folder, A, B)
    written = {str(p.relative_to(tmp_path / "one")) for p in (tmp_path / "one").rglob("*") if p.is_file()}
    assert written == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def texts_overlap(figure: Figure) -> bool:
    figure.canvas.draw()
    boxes = [text.get_window_extent() for axes in figure.axes for text in axes.get_yticklabels() if text.get_text()]
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize("draw", [draw_tasks, draw_outcomes])
def test_labels_of_many_tasks_do_not_overlap(draw):
    tasks = 40
    episodes = [Episode(uid=i, task=i, init_state=0, seed=i) for i in range(tasks)]
    arms = [Arm(label, label, 8, [True] * tasks, [9] * tasks) for label in "ABC"]
    words = {task: "pick up the black bowl on the cookie box and place it on the plate" for task in range(tasks)}
    figure = draw(Report({}, {}, [], words, episodes, arms, {}))
    assert not texts_overlap(figure)


def test_a_column_is_one_initial_state():
    (axes,) = draw_outcomes(report(A, B)).axes
    cells = axes.collections[0].get_array().reshape(4, 4)
    assert np.array_equal(cells, [[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "task 3, from state 40: A", "task 3, from state 40: B", "task 5, from state 40: A", "task 5, from state 40: B"
    ]  # fmt: skip


def test_many_states_go_on_in_another_row():
    episodes = [Episode(uid=i, task=0, init_state=i, seed=i) for i in range(130)]
    figure = draw_outcomes(Report({}, {}, [], {}, episodes, [Arm("A", "a", 8, [True] * 130, [9] * 130)], {}))
    cells = figure.axes[0].collections[0].get_array().reshape(2, 100)
    assert np.ma.count(np.ma.masked_invalid(cells)) == 130


def test_success_of_a_task():
    assert report(A).of_task(A, 3) == SuccessRate.of(4, 4)


def sampled_again() -> Report:
    """Task 0 from the states 7 and 8, each sampled twice, in turns; task 1 from four states."""
    again = [Episode(uid=i, task=0, init_state=7 + i % 2, seed=i) for i in range(4)]
    others = [Episode(uid=4 + i, task=1, init_state=i, seed=i) for i in range(4)]
    first = Arm("A", "a", 8, [True, False, True, False, True, False, False, False], [9] * 8)
    second = Arm("B", "b", 8, [True] * 6 + [False] * 2, [9] * 8)
    return Report({"protocol": "heldout"}, {}, [], {}, again + others, [first, second], {})


def test_samples_of_one_initial_state_are_one_cluster():
    found = sampled_again()
    first, second = found.arms
    assert found.of_task(first, 0) == SuccessRate.of_clusters([(2, 2), (0, 2)])
    assert found.of_task(second, 0) == SuccessRate.of_clusters([(2, 2), (2, 2)])  # as 2 episodes, not 4
    assert found.of_task(second, 0).wilson_low == SuccessRate.of(2, 2).wilson_low
    assert found.of_task(first, 1) == SuccessRate.of(1, 4)
    assert found.overall(first) == SuccessRate.of_clusters([(2, 2), (0, 2), (1, 1), (0, 1), (0, 1), (0, 1)])
    ((_, test),) = found.paired()
    assert (test.gained, test.p_value) == (3, 0.5)  # 2 in one state and 1 in another: of +-2 +-1, half are 3 from 0
    assert test == PairedTest.of_clusters(found.pairs, first.success_E, second.success_E)
    assert found.to_json()["checkpoints"][0]["overall"] == asdict(found.overall(first))
    assert "Success with 95% Wilson intervals, the samples of an initial state taken as one cluster." in (
        found.to_markdown()
    )
    assert "(exact test that flips initial states as a whole; 95% intervals)" in found.to_markdown()
    assert not report(A).clustered and report(A).interval_name == "Wilson intervals"


def test_samples_of_one_initial_state_stand_beside_each_other():
    cells = draw_outcomes(sampled_again()).axes[0].collections[0].get_array().reshape(4, 4)
    assert np.array_equal(cells[0], [1, 1, 0, 0])  # states 7 7 8 8
