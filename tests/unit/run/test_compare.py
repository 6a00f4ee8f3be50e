"""Comparing finished runs: names, thresholds, intervals, the tables and the figures."""

import json
import re
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
import yaml
from matplotlib.colors import to_hex

from callbacks.monitors.run_plot import RunPlot
from tests.helpers.make import train
from vla_rl import compare
from vla_rl.config.compose import compose, group_names
from vla_rl.errors import UserError
from vla_rl.figures.comparison import draw_arms, draw_cost, draw_success
from vla_rl.functional.statistics import SuccessRate, wilson_interval
from vla_rl.run.compare import Run, arms, mask_name, paired_difference, success_interval
from vla_rl.run.tables import comparison_tables

NAN = float("nan")
ROOT = Path(__file__).parents[3]


@cache
def mask_node(options: str) -> dict | None:
    """What a config file says of `mask=...`."""
    return compose(["conf=pcm_object_tiny", *options.split()]).mask


def write_run(
    folder, *, mask="mask=pcm", seed=1, rates=(0.2, 0.4, 0.6, 0.8), after=(8, 10), update_s=1.0, config=None, **extra
):
    """A run folder as vla_rl.fit leaves it."""
    folder.mkdir(parents=True)
    content = {"mask": mask_node(mask), "seed": seed} | (config or {})
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    rows = [
        {"iteration": i, "rollout/success": rate, "time/rollout_s": 3.0, "time/update_s": update_s,
         "chunks/kept": 50.0, "chunks/real": 200.0} | extra
        for i, rate in enumerate(rates)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rate = lambda successes, episodes: asdict(SuccessRate.of(successes, episodes))  # noqa: E731
    summary = {"success_before": {"sampled": rate(1, 10)}, "success_after": {"sampled": rate(*after)}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_elsewhere(folder, won: int, *, radius_m: float = 0.02) -> None:
    """What callbacks.SuccessElsewhere leaves in a run folder."""
    rates = {when: asdict(SuccessRate.of(*of)) for when, of in {"before": (0, 60), "after": (won, 60)}.items()}
    where = {"sim": {"placement_noise_m": radius_m}, "init_states": [0, 60], "decoding": "greedy"}
    (folder / "elsewhere.json").write_text(json.dumps(where | rates))


@pytest.mark.parametrize("name", [name for name in group_names("mask")])
def test_a_mask_is_known_by_its_options_whatever_its_budget(name):
    budget = [] if name in ("none", "full_padded") else ["mask.budget=3"]
    assert mask_name(compose(["conf=pcm_object_tiny", f"mask={name}", *budget]).mask) == name


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("mask=pcm mask.floor=0.3", "pcm floor=0.3"),
        ("mask=pcm mask.debias=true mask.budget=5", "pcm debias=true"),
        ("mask=pcm_credit mask.score=divergence", "pcm labeller=grasp_time"),
        ("mask._target_=my_pkg.my_mask.MyMask mask.mine=1", "MyMask"),
    ],
)
def test_a_mask_with_other_options_is_known_by_the_nearest_file_and_what_differs(given, name):
    assert mask_name(mask_node(given)) == name


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.yaml", lambda tree: tree.pop("mask"), "does not hold what is compared (KeyError: 'mask')"),
        ("config.yaml", lambda tree: tree.update(mask=True), "does not hold what is compared (TypeError"),
        ("config.yaml", lambda tree: tree["mask"].update(_target_=None), "does not hold what is compared (Attribute"),
        ("config.yaml", lambda tree: tree.update(seed="text"), "does not hold what is compared (TypeError"),
        ("metrics.jsonl", lambda row: row.pop("chunks/kept"), "(chunks/kept of iteration 0 is None): copy the run"),
        ("metrics.jsonl", lambda row: row.update({"time/rollout_s": None}), "time/rollout_s of iteration 0 is None"),
        ("metrics.jsonl", lambda row: row.update({"time/rollout_s": NAN}), "time/rollout_s of iteration 0 is nan"),
        ("metrics.jsonl", lambda row: row.update(mine="x"), "compared (mine of iteration 0 is 'x'): copy"),
        ("summary.json", dict.clear, ": success_before holds no success rates"),
        ("summary.json", lambda tree: tree["success_after"]["sampled"].pop("rate"), ": success_after holds no"),
        ("summary.json", lambda tree: tree["success_after"]["sampled"].update(rate="x"), ": success_after holds no"),
        ("summary.json", lambda tree: tree["success_after"]["sampled"].update(rate=NAN), "(sampled: rate is nan)"),
        ("summary.json", lambda tree: tree["success_after"]["sampled"].update(wilson_high=1.2), "wilson_high is 1.2)"),
        ("summary.json", lambda tree: tree["success_before"]["sampled"].update(episodes=-1), "episodes is -1): copy"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(name, change, message, tmp_path):
    file = write_run(tmp_path / "run", rates=(0.5,)) / name
    load, dump = (yaml.safe_load, yaml.safe_dump) if name == "config.yaml" else (json.loads, json.dumps)
    tree = load(file.read_text())
    change(tree)
    file.write_text(dump(tree))
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}.*{re.escape(message)}"):
        Run.read(tmp_path / "run")


def test_damaged_success_elsewhere_is_named(tmp_path):
    run = write_run(tmp_path / "run", rates=(0.5,))
    for content, message in (
        ('{"sim": 3, "decoding": "greedy"}', "AttributeError"),
        ('{"sim": {}}', "KeyError: 'decoding'"),
    ):
        (run / "elsewhere.json").write_text(content)
        with pytest.raises(UserError, match=rf"elsewhere.json does not hold what is compared \({message}"):
            Run.read(run)
    write_elsewhere(run, 30)
    (run / "elsewhere.json").write_text((run / "elsewhere.json").read_text().replace("0.5,", "NaN,"))
    with pytest.raises(UserError, match="elsewhere.json: after holds no success rates"):
        Run.read(run)


def test_metrics_that_lack_iterations(tmp_path):
    run = write_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text()) | {"iterations": 4}
    (run / "summary.json").write_text(json.dumps(summary))
    assert len(Run.read(run).rows) == 4
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(rows[:3]))
    with pytest.raises(UserError, match=r"metrics.jsonl .*\(3 iterations, and summary.json has iterations=4\): copy"):
        Run.read(run)


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
    assert run.success == [(1, 0.9), (2, 0.9), (3, 0.9), (4, 0.9)]
    assert run.seconds_to(0.9) == 4.0


def test_what_else_differs_names_an_arm(tmp_path):
    low, high = ({"optim": {"lr": lr}, "iterations": 4} for lr in (1e-5, 3e-5))
    options = ["mask=pcm mask.floor=0.3", *(f"mask._target_=my_pkg.my_mask.MyMask mask.mine={n}" for n in (1, 2))]
    found = [
        write_run(tmp_path / "a", config=low),
        write_run(tmp_path / "b", config=high),
        write_run(tmp_path / "c", config=low | {"run_dir": "x", "sim": {"workers": 9}}, seed=2),
    ]
    assert list(arms([Run.read(folder) for folder in found])) == ["pcm B=12 optim.lr=1e-05", "pcm B=12 optim.lr=3e-05"]
    masks = [Run.read(write_run(tmp_path / f"m{i}", mask=mask)) for i, mask in enumerate(options)]
    # its own options tell the two of one class apart, and not the others beside them
    masks.append(Run.read(write_run(tmp_path / "none", mask="mask=none")))
    assert list(arms(masks)) == ["pcm floor=0.3 B=12", "MyMask mask.mine=1", "MyMask mask.mine=2", "none"]


def test_a_node_that_only_some_have_is_named_by_its_class_alone(tmp_path):
    critics = [
        None,
        ("callbacks.HeadCritic", 0.95),
        ("callbacks.SeparateCritic", 0.5),
        ("callbacks.SeparateCritic", 0.9),
    ]
    runs = []
    for n, critic in enumerate(critics):
        node = critic and {"_target_": critic[0], "lam": critic[1], "inner": {"nets": n}}
        runs.append(Run.read(write_run(tmp_path / str(n), config={"critic": node})))
    assert list(arms(runs[:3])) == ["pcm B=12", "pcm B=12 critic=callbacks.HeadCritic",
                                    "pcm B=12 critic=callbacks.SeparateCritic"]  # fmt: skip
    assert list(arms(runs[2:])) == ["pcm B=12 critic.inner.nets=2 critic.lam=0.5",
                                    "pcm B=12 critic.inner.nets=3 critic.lam=0.9"]  # fmt: skip


def test_what_only_watches_a_run_makes_no_arm(tmp_path):
    slots = [("checkpoint", "credit_kept"), ("checkpoint",), ("checkpoint", "mine")]
    configs = [{"callbacks": {name: {"_target_": f"callbacks.{name}"} for name in names}} for names in slots]
    runs = [Run.read(write_run(tmp_path / str(n), seed=n, config=config)) for n, config in enumerate(configs)]
    assert [len(members) for members in arms(runs).values()] == [2, 1]


def test_a_run_from_before_an_option_had_its_default(tmp_path):
    configs = [{"grpo": {"ratio": "token"}, "sft": {"steps": 800}}, {}, {"grpo": {"ratio": "chunk"}}]
    runs = [Run.read(write_run(tmp_path / str(n), seed=n, config=config)) for n, config in enumerate(configs)]
    names = {arm: [run.seed for run in members] for arm, members in arms(runs).items()}
    assert names == {"pcm B=12 grpo.ratio=token": [0, 1], "pcm B=12 grpo.ratio=chunk": [2]}


def test_an_arm_has_one_run_of_a_seed(tmp_path):
    runs = [Run.read(write_run(tmp_path / name)) for name in "ab"]
    with pytest.raises(UserError, match="two runs of the arm 'pcm B=12' have seed 1: give one run for each seed"):
        arms(runs)


def test_success_of_one_run_has_wilsons_interval_and_of_several_students(tmp_path):
    runs = [Run.read(write_run(tmp_path / str(seed), seed=seed, after=(seed, 10))) for seed in (3, 6)]
    alone = success_interval(runs[:1], "success_after", "sampled")
    assert (alone.low, alone.high) == wilson_interval(3, 10)
    # .3 and .6: mean .45, s = .3 / sqrt 2, t(.975, 1) = 12.706: half 12.706 * .15
    both = success_interval(runs, "success_after", "sampled")
    assert (both.mean, both.low, both.high) == pytest.approx((0.45, 0.45 - 1.9059, 0.45 + 1.9059), abs=1e-4)
    assert success_interval(runs, "success_after", "greedy") is None


def test_differences_are_paired_by_seed(tmp_path):
    first, second = (
        [
            Run.read(write_run(tmp_path / f"{name}{seed}", mask=f"mask={name}", seed=seed, after=(won, 10)))
            for seed, won in after.items()
        ]
        for name, after in {"none": {1: 2, 2: 5, 3: 4}, "random": {4: 1, 3: 7, 2: 6}}.items()
    )
    # seeds 2 and 3: +.1 and +.3, mean .2, s = .2 / sqrt 2: half 12.706 * .1
    found = paired_difference(first, second, "sampled")
    assert (found.mean, found.low, found.high, found.count) == pytest.approx((0.2, -1.0706, 1.4706, 2), abs=1e-4)
    assert paired_difference(first[:1], second, "sampled") is None  # no seed in common
    assert paired_difference(first, second, "greedy") is None


def test_tables(tmp_path):
    runs = [
        Run.read(
            write_run(tmp_path / f"{mask}{seed}", mask=f"mask={mask}", seed=seed, update_s=float(seed), after=(won, 10))
        )
        for mask, wins in {"pcm": (6, 8), "random": (5, 9)}.items()
        for seed, won in enumerate(wins, 1)
    ]
    arm, run, difference = comparison_tables(runs)
    # half .1 * 12.706; 4 iterations of 50 of 200 chunks; update seconds 4 and 8
    assert arm.rows[0] == (
        "pcm B=12", "2", "0.10 [0.10, 0.10]", "0.70 [-0.57, 1.97]", "200", "25%", "6.0", "12.0"
    )  # fmt: skip
    assert run.rows[1] == ("pcm B=12", "2", "0.10 [0.02, 0.40]", "0.80 [0.49, 0.94]")
    # -.1 and .1: s = .1414
    assert difference.rows == [("random B=12 - pcm B=12", "sampled", "2", "+0.00 [-1.27, +1.27]")]
    (against,) = comparison_tables(runs, against="random B=12")[2].rows
    assert against[0] == "pcm B=12 - random B=12"
    with pytest.raises(UserError, match=r"no arm 'randm B=12'; did you mean 'random B=12'\? .*against='pcm B=12'"):
        comparison_tables(runs, against="randm B=12")
    assert arm.to_markdown().splitlines()[:3] == [
        "| arm | seeds | sampled before | sampled after | chunks trained on | of executed | update s | rollout s |",
        "|---|---|---|---|---|---|---|---|",
        "| pcm B=12 | 2 | 0.10 [0.10, 0.10] | 0.70 [-0.57, 1.97] | 200 | 25% | 6.0 | 12.0 |",
    ]
    assert run.to_text().splitlines()[:2] == [
        "arm          seed  sampled before     sampled after",
        "pcm B=12     1     0.10 [0.02, 0.40]  0.60 [0.31, 0.83]",
    ]
    assert arm.note.startswith("Success: mean over seeds with the 95% interval of Student's t. Chunks")


def test_success_elsewhere_is_compared_where_arms_have_it(tmp_path):
    wins = {"pcm": (30, 36), "random": (24, 24)}
    runs = []
    for mask, after in wins.items():
        for seed, won in enumerate(after, 1):
            write_elsewhere(folder := write_run(tmp_path / f"{mask}{seed}", mask=f"mask={mask}", seed=seed), won)
            runs.append(Run.read(folder))
    name = "greedy at placement_noise_m=0.02"
    arm, run, difference = comparison_tables(runs)
    assert arm.head[2:6] == ("sampled before", "sampled after", f"{name} before", f"{name} after")
    assert arm.rows[0][4:6] == ("0.00 [0.00, 0.00]", "0.55 [-0.09, 1.19]")  # of .5 and .6: half .05 * 12.706
    assert run.rows[3][5] == "0.40 [0.29, 0.53]"
    assert difference.rows[1] == ("random B=12 - pcm B=12", name, "2", "-0.15 [-0.79, +0.49]")  # -.1 and -.2
    (tmp_path / "random2" / "elsewhere.json").unlink()
    arm, run, difference = comparison_tables([*runs[:3], Run.read(tmp_path / "random2")])
    assert arm.rows[1][5] == "-"  # one seed of two would not be the arm
    assert run.rows[3][5] == "-"
    assert [row[1] for row in difference.rows] == ["sampled"]
    write_elsewhere(tmp_path / "random2", 24, radius_m=0.1)
    runs[3] = Run.read(tmp_path / "random2")
    assert [head for head in comparison_tables(runs)[0].head if "after" in head] == [
        "sampled after",
        f"{name} after",
        "greedy at placement_noise_m=0.1 after",
    ]


def test_a_single_run_has_one_table(tmp_path):
    (only,) = comparison_tables([Run.read(write_run(tmp_path / "a"))])
    assert only.rows[0][2:4] == ("0.10 [0.02, 0.40]", "0.80 [0.49, 0.94]")
    assert only.note.startswith("Success: rate of one run with its 95% Wilson interval.")


def test_figures(tmp_path):
    budgets = [write_run(tmp_path / f"b{b}", mask=f"mask=pcm mask.budget={b}", after=(b, 20)) for b in (4, 8)]
    runs = [*map(Run.read, budgets), Run.read(write_run(tmp_path / "none", mask="mask=none"))]
    _by_iteration, by_time = draw_success(runs).axes
    assert by_time.lines[0].get_xdata().tolist() == [4.0, 8.0, 12.0, 16.0]
    assert [text.get_text() for text in by_time.figure.legends[0].get_texts()] == ["pcm B=4", "pcm B=8", "none"]
    thresholds, update = draw_cost(runs).axes  # activation memory was not measured
    assert thresholds.lines[0].get_xdata().tolist() == [0.3, 0.4, 0.5, 0.6]
    assert update.lines[0].get_ydata().tolist() == [1.0, 2.0, 3.0, 4.0]
    never = [
        Run.read(write_run(tmp_path / str(seed), seed=seed, **{"heldout/sampled_success": 0.1})) for seed in (1, 2)
    ]
    assert draw_cost(never).axes[0].texts[0].get_text() == "not reached"
    runs[0].rows[1]["memory/activations_mb"] = 12.0
    assert draw_cost(runs).axes[2].patches[0].get_height() == 12.0
    one, other, mean = draw_success(never).axes[0].lines[:3]
    assert one.get_alpha() == other.get_alpha() == 0.25
    assert mean.get_ydata().tolist() == pytest.approx([0.1] * 4)
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


def test_the_verb(tmp_path, capsys):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "mask=random", mask="mask=random")]
    compare.main([*map(str, folders), f"out={tmp_path / 'out'}", "table=markdown"])
    assert "| random B=12 | 1 |" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"table.md", "success.png", "cost.png", "arms.png"}
    assert "| random B=12 | 1 |" in (tmp_path / "out" / "table.md").read_text()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    run = write_run(tmp_path / "a")
    monkeypatch.setattr("vla_rl.compare.run_all", lambda _: pytest.fail("a run was started"))
    for arguments in ([str(run)], ["sweep", "conf=pcm_object_tiny", "seed=1,2"]):
        with pytest.raises(
            UserError, match="^cannot write out=/dev/null/x: Not a directory; name another folder: out="
        ):
            compare.main([*arguments, "out=/dev/null/x"])


def test_a_mistake_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nowhere holds no finished run"):
        compare.main(["nowhere"])
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_cannot_be_drawn_costs_no_table(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("latex could not be found")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    monkeypatch.setattr("vla_rl.run.extras._warned", set())
    with pytest.warns(UserWarning, match="drawing the figure .* failed"):
        compare.main([str(write_run(tmp_path / "a")), f"out={tmp_path / 'out'}"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"table.md"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}"], "{folder} holds no finished run: it has no config.yaml (give run folders of vla_rl.fit)"),
        ([], "no run folders given: python -m vla_rl.compare runs/one runs/other"),
        (["{folder}", "otu=x"], "unknown key 'otu'; did you mean 'out'?"),
        (["{folder}", "table=html"], "table must be one of text, markdown, got 'html'"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, message):
    with pytest.raises(UserError) as error:
        compare.main([argument.format(folder=tmp_path) for argument in arguments])
    assert str(error.value).startswith(message.format(folder=tmp_path))


def test_an_unfinished_run(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "summary.json").unlink()
    with pytest.raises(UserError, match=r"it has no summary.json"):
        Run.read(folder)
