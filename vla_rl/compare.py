"""`python -m vla_rl.compare runs/none runs/pcm`: tables and figures of finished runs, with honest intervals.

    out=comparison        folder for table.md and the figures (success, cost, arms)
    against="pcm B=8"     the arm that others are compared with; default: that of the first run
    table=markdown        print Markdown; default: text

Runs that differ in nothing but the seed are one arm: its success is a mean over seeds with the interval of Student's t,
that of a single run has Wilson's. Arms that share seeds are also compared seed by seed.

`python -m vla_rl.compare sweep out=FOLDER conf=NAME seed=1,2,3 mask=none,pcm ...` trains the runs first, one after the
other as `python -m vla_rl.fit`, in every combination of the values that are separated by commas:

    optim.lr=1e-5,3e-5            commas inside [] separate nothing
    mask=none,pcm+mask.budget=8   what follows a + belongs to that value alone

The same command again skips the runs that are finished and goes on with the one that was stopped. FOLDER gets a folder
for each run, and after each run the tables, the figures, and README.md with commands and versions.
"""

from __future__ import annotations

from vla_rl.config.arguments import compare_arguments
from vla_rl.run.cli import answer_early, run_entry

if __name__ == "__main__":
    answer_early(__doc__, compare_arguments)  # before the imports below, which take seconds

from pathlib import Path

from vla_rl.checks import check_writable_folder
from vla_rl.config.schema import CompareConfig, SweepConfig
from vla_rl.figures.comparison import write_figures
from vla_rl.run.compare import Run
from vla_rl.run.sweep import planned_runs, run_all, sweep_readme
from vla_rl.run.tables import Table, comparison_tables


def main(argv: list[str]) -> None:
    given, options = compare_arguments(argv)
    if isinstance(options, SweepConfig):
        sweep(given, options)
        return
    tables = compare([Path(folder) for folder in given], options)
    show(tables, options)


def sweep(of_runs: list[str], options: SweepConfig) -> None:
    """Run what is missing; tables and figures of what is finished after each run."""
    out = Path(options.out)
    check_writable_folder("out", out, "runs/sweep")
    runs = planned_runs(of_runs, out)
    finished = []
    for run, trained in run_all(runs):
        finished.append(run)
        if trained or run is runs[-1]:
            tables = compare([run.folder for run in finished], options)
            (out / "README.md").write_text(sweep_readme(finished, len(runs), tables), encoding="utf-8")
    show(tables, options)


def compare(folders: list[Path], options: CompareConfig) -> list[Table]:
    """The tables of the runs; they and the figures are in the folder `out`.

    Raises:
        UserError: a folder without a finished run, no such arm, or `out` cannot be written.
    """
    runs = [Run.read(folder) for folder in folders]
    tables = comparison_tables(runs, options.against)
    check_writable_folder("out", Path(options.out), "comparison")
    write_figures(runs, Path(options.out))
    (Path(options.out) / "table.md").write_text("\n".join(table.to_markdown() for table in tables), encoding="utf-8")
    return tables


def show(tables: list[Table], options: CompareConfig) -> None:
    print("\n".join(table.to_markdown() if options.table == "markdown" else table.to_text() for table in tables))
    print(f"figures and table in {options.out}")


if __name__ == "__main__":
    run_entry(main)
