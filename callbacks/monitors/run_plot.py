"""Success and cost of the run that ends, as figures; `python -m vla_rl.compare` draws the same of several."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from callbacks.monitors.save_figures import save_figures
from vla_rl.figures.comparison import draw_cost, draw_success
from vla_rl.files import read_json_lines
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.rollout.trainer_state import data_of
from vla_rl.run.compare import Run


class RunPlot(RolloutCallback):
    """Draws `figures/success` and `figures/cost` at the end of training, from the `metrics.jsonl` of the run."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = Path(trainer.default_root_dir) / "metrics.jsonl"
        if not trainer.is_global_zero or not path.exists():
            return
        if rows := read_json_lines(path):
            run = Run(arm="this run", mask="", budget=None, seed=data_of(trainer).seed, rows=rows, summary={})
            save_figures(lambda: {"success": draw_success([run]), "cost": draw_cost([run])}, trainer)
