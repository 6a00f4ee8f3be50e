"""The pages themselves: what is generated is as the code and the stored runs give it."""

from __future__ import annotations

import re

import pytest

from tests.helpers.docs_commands import ROOT
from tools import config_reference, site_hooks
from vla_rl.functional.statistics import MeanInterval
from vla_rl.run.compare import Run, paired_difference, success_interval
from vla_rl.run.tables import comparison_tables, run_table


def shown(rate: MeanInterval) -> str:
    return f"{rate.mean:.2f} [{rate.low:.2f}, {rate.high:.2f}]"


def words(page: str) -> str:
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def stored_runs(arms: str) -> list[Run]:
    """The runs of `place/arm` below benchmarks/; `place/*` for those of all its arms."""
    return [Run.read(folder) for folder in sorted((ROOT / "benchmarks").glob(f"{arms}/seed*"))]


def test_the_configuration_reference_is_up_to_date():
    assert config_reference.PAGE.read_text() == config_reference.page(), "run: python tools/config_reference.py"


def test_the_reference_has_every_kind_of_entry():
    page = config_reference.page()
    for row in (
        "| `pcm_object_tiny` | Probabilistic chunk masking with a small policy",  # a conf
        "| `rollout.train_init_states` | `[0, 40]` | tuple[int, int] | half-open range that training draws from |",
        "| `pcm_paper_literal` | PCM with every choice as the paper's text",  # a group's file
        "| `mask.floor` | `0.1` | least keep probability of a phase, relative to the highest |",  # from the file
        "| `sim.timeout_s` | `120.0` | an answer that takes longer",  # from the docstring alone
        "| `callbacks.trace` | `callbacks.Trace` |  |",  # a slot that is not filled
    ):
        assert row in page
    assert "| `trainer.max_epochs`" not in page  # the program sets it


def test_every_option_has_a_meaning():
    rows = re.findall(r"^\| `((?:policy|sim|mask)\.\w+)` \| .*? \| (.*) \|$", config_reference.page(), re.M)
    assert len(rows) > 20
    assert [name for name, meaning in rows if not meaning] == []


def test_a_section_of_the_readme_is_taken_over():
    page = site_hooks.on_page_markdown("before\n<!-- README: Evaluate -->\nafter")
    assert page.startswith("before\n")
    assert page.endswith("\nafter")
    assert "](evaluation.md)" in page
    assert "](docs/" not in page
    assert "## Results" not in page
    with pytest.raises(ValueError, match="no section 'Evalaute'"):
        site_hooks.on_page_markdown("<!-- README: Evalaute -->")


def test_the_tree_of_the_readme_has_every_folder():
    (tree,) = re.findall(r"```text\n(conf/ .*?)```", (ROOT / "README.md").read_text(), re.S)
    named, top = set(), ""
    for indent, folder in re.findall(r"^( *)(\w+)/ ", tree, re.M):
        top = top if indent else folder
        named.add(f"{top}/{folder}" if indent else folder)
    packages = {
        str(file.parent.relative_to(ROOT)) for name in ("vla_rl", "callbacks") for file in (ROOT / name).glob("*/*.py")
    }
    assert named == packages | {"conf", "vla_rl", "callbacks", "tools", "tests", "docs"}


def test_the_path_to_the_loss_is_six_files_of_which_each_has_what_is_said():
    """CONTRIBUTING's list, and the same files in the README."""
    steps = re.findall(r"^\d\. `(\S+\.py)`: .*?`([\w.]+)`", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert len(steps) == 6
    assert steps[0][0] == "vla_rl/fit.py"
    assert steps[-1][0] == "vla_rl/functional/losses.py"
    for file, name in steps:
        for part in name.split("."):
            assert re.search(rf"^ *(?:def|class) {part}\b", (ROOT / file).read_text(), re.M), f"{file} has no {part}"
    (line,) = re.findall(r"^fit\.py -> .*$", (ROOT / "README.md").read_text(), re.M)
    assert line.split(" -> ") == [file.removeprefix("vla_rl/") for file, _ in steps]


@pytest.mark.filterwarnings("ignore:the config has paths of version 0.1")  # the runs are of that version
@pytest.mark.parametrize(
    ("name", "order", "count"),
    [
        ("masks", ("none", "random B=8", "single_phase B=8", "pcm B=8"), 20),
        (
            "masks_with_critic",
            ("none", "random B=5", "pcm B=5", "pcm_credit B=5", "advantage B=5", "critic_choice B=5"),
            29,
        ),
        (
            "group_advantage",
            (
                *("none", "random B=5", "random_padded B=3", "pcm B=5"),
                *("pcm debias=true B=5", "pcm_paper_literal B=5", "single_phase B=5"),
            ),
            29,
        ),
        ("padding_chunk16", ("full_padded", "random_padded B=6", "random B=6", "pcm B=6"), 12),
    ],
)
def test_the_table_of_masks_is_what_the_stored_runs_give(name, order, count):
    runs = stored_runs(f"{name}/*")
    assert len(runs) == count
    runs.sort(key=lambda run: order.index(run.arm))
    written = comparison_tables(runs)[0].to_markdown().split("\n\n")[0]
    for page in ("docs/results.md", f"benchmarks/{name}/README.md"):
        assert written in (ROOT / page).read_text(encoding="utf-8"), page


@pytest.mark.filterwarnings("ignore:the config has paths of version 0.1")
@pytest.mark.parametrize(
    ("place", "first", "masks"),
    [
        (
            "masks_with_critic",
            "none",
            {name: name for name in ("random", "pcm", "pcm_credit", "advantage", "critic_choice")},
        ),
        (
            "group_advantage",
            "none",
            {"pcm debias=true": "pcm mask.debias=true"}
            | {name: name for name in ("random", "pcm", "random_padded", "pcm_paper_literal", "single_phase")},
        ),
        ("padding_chunk16", "pcm", {name: name for name in ("random", "random_padded", "full_padded")}),
    ],
)
def test_how_masks_differ_from_the_first_is_what_the_stored_runs_give(place, first, masks):
    runs = stored_runs(f"{place}/*")
    by_mask = {mask: [run for run in runs if run.mask == mask] for mask in (first, *masks)}
    text = words("docs/results.md")
    for mask, name in masks.items():
        gap = paired_difference(by_mask[first], by_mask[mask], "sampled")
        assert gap is not None
        assert f"by {shown(gap)} with `{name}`" in text, mask


@pytest.mark.filterwarnings("ignore:the config has paths of version 0.1")
def test_what_is_said_of_the_groups_advantage_is_what_the_stored_runs_give():
    critic, group = stored_runs("masks_with_critic/none"), stored_runs("group_advantage/none")
    page = (ROOT / "benchmarks" / "group_advantage" / "README.md").read_text(encoding="utf-8")
    for table in comparison_tables([*critic, *group]):
        assert table.to_markdown() in page
    reached = [success_interval(group, "success_after", mode) for mode in ("sampled", "greedy")]
    sampled, greedy = (shown(rate) for rate in reached)
    less = [paired_difference(critic, group, mode) for mode in ("sampled", "greedy")]
    differs = " and ".join(shown(gap) for gap in less)
    for file in ("docs/results.md", "docs/grpo_or_ppo.md"):
        text = words(file)
        assert f"reaches {sampled} sampled and {greedy} greedy" in text, file
        assert f"differs by {differs}" in text, file


MEASURED = ("sampled", "greedy", "greedy at placement_noise_m=0.02")


def test_what_the_default_run_gains_is_what_the_stored_runs_give():
    runs = stored_runs("default_run/none")
    for page in ("docs/results.md", "benchmarks/default_run/README.md"):
        assert run_table({"default": runs}).to_markdown() in (ROOT / page).read_text(encoding="utf-8"), page
    sampled, greedy, drawn = (
        MeanInterval.of(
            [run.summary["success_after"][mode]["rate"] - run.summary["success_before"][mode]["rate"] for run in runs]
        )
        for mode in MEASURED
    )
    readme, results = words("README.md"), words("docs/results.md")
    interval = f"[{sampled.low:.2f}, {sampled.high:.2f}]"
    assert f"by {sampled.mean:.2f} on average over five seeds (95% interval {interval})" in readme
    assert f"greedy success from 0 by {shown(greedy)}" in readme
    assert f"greedy success rises from 0.25 by {shown(drawn)}" in readme
    gains = f"{shown(sampled)} sampled, {shown(greedy)} greedy and {shown(drawn)} on the drawn placements"
    assert f"The mean gain is {gains}." in results


def test_what_a_critic_is_worth_in_the_default_run_is_what_the_stored_runs_give():
    critic, group = stored_runs("default_run/none"), stored_runs("default_run/group_advantage")
    with_critic, without = (
        [success_interval(runs, "success_after", mode) for mode in MEASURED] for runs in (critic, group)
    )
    sampled, greedy, drawn = (shown(rate) for rate in without)
    readme, results = words("README.md"), words("docs/results.md")
    assert f"reach {sampled} sampled, {greedy} greedy and {drawn} on the drawn placements." in results
    sampled, greedy, drawn = (shown(paired_difference(critic, group, mode)) for mode in MEASURED)
    assert f"Paired by seed, that is {sampled}, {greedy} and {drawn}." in results
    (s, g, d), (cs, cg, cd) = ([f"{rate.mean:.2f}" for rate in rates] for rates in (without, with_critic))
    assert f"reaches {s} and {g} greedy where the critic's advantages reach {cs} and {cg}, over the same" in readme
    assert f"on placements that neither has seen, {d} against {cd}." in readme
    reached = " and ".join(f"{shown(rate)} {mode}" for rate, mode in zip(with_critic[:2], MEASURED, strict=False))
    assert f"goes on to 24 iterations, and to {reached}" in words("docs/grpo_or_ppo.md")
    for table in comparison_tables([*critic, *group]):
        assert table.to_markdown().strip() in (ROOT / "benchmarks/default_run/README.md").read_text(encoding="utf-8")


def test_what_is_said_of_padding_is_what_the_stored_runs_give():
    padded, random_padded, random, pcm = (
        stored_runs(f"padding_chunk16/{arm}")
        for arm in ("full_padded", "random_padded_budget6", "random_budget6", "pcm_budget6")
    )
    readme, results = words("README.md"), words("docs/results.md")

    def per_run(runs: list[Run], tag: str) -> float:
        return sum(row[tag] for run in runs for row in run.rows) / len(runs)

    of_update, of_iteration = (
        per_run(padded, tag) / per_run(pcm, tag) for tag in ("time/update_s", "time/iteration_s")
    )
    executed = per_run(padded, "chunks/real")
    left = executed / per_run(pcm, "chunks/kept")
    assert f"PCM's update takes {of_update:.1f} times less than one on padded" in readme
    assert f"by the number of chunks, {left:.1f} times less than one on all that were executed" in readme
    assert f"Six chunks take {of_update:.1f} times less of the update's time" in results
    without_padding = per_run(padded, "chunks/kept") / executed
    assert f"a factor of {without_padding:.1f}, and PCM on top of it one of {left:.1f}, by the number" in results
    assert f"A whole run takes {of_iteration:.1f} times less than the padded one" in results
    p, r = (success_interval(runs, "success_after", "sampled").mean for runs in (pcm, random))
    assert f"({p:.2f} and {r:.2f} over four seeds)" in readme
    assert f"With two more seeds `random` reaches {r / p:.0%} of PCM's success." in results
    gaps = [shown(paired_difference(pcm, runs, MEASURED[2])) for runs in (random, random_padded, padded)]
    assert f"On the drawn placements: {gaps[0]}, {gaps[1]} and {gaps[2]}." in results
    masks = shown(paired_difference(random, random_padded, "sampled"))
    assert f"the two random masks by {masks}." in results
