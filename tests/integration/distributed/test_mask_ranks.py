"""Two ranks with different numbers of groups compute the same statistics, those of all groups together."""

import json

import lightning as L
import pytest

from callbacks.masks.global_mask import GlobalPCM
from callbacks.masks.pcm import PCM
from callbacks.monitors.phase_plot import PhasePlot
from tests.helpers.make import MadeData, random_groups, train
from vla_rl.functional.divergence import mean_divergence
from vla_rl.functional.phases import PHASES, trajectory_phases


class SaveStatistics(L.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        pcm, plot = trainer.callbacks[:2]
        kept = sum(len(rows) for rows in pl_module.rows_seen())
        path = self.folder / f"rank{trainer.global_rank}.json"
        path.write_text(json.dumps({"history": pcm.history, "real": plot.real, "all": plot.kept, "own": kept}))


class UnequalData(MadeData):
    """Rank 0 has one of the three groups, rank 1 the other two."""

    def train_dataloader(self):
        epoch = super().train_dataloader()
        epoch.groups = epoch.groups[:1] if self.trainer.global_rank == 0 else epoch.groups[1:]
        return epoch


def three_groups(iteration):
    return random_groups(iteration, groups=3)


def test_statistics_are_those_of_all_groups(tmp_path):
    train(
        tmp_path, PCM(budget=3), PhasePlot(), SaveStatistics(tmp_path),
        data=UnequalData(three_groups), devices=2, strategy="ddp_fork",
    )  # fmt: skip
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert str(first["history"]) == str(second["history"])  # as text: NaN equals NaN
    expected_F, _ = mean_divergence(three_groups(0), lambda tensor: tensor)
    assert first["history"][0]["divergence"] == pytest.approx(expected_F.tolist(), rel=1e-12, nan_ok=True)
    one_rank_F, _ = mean_divergence(three_groups(0)[:1], lambda tensor: tensor)
    assert one_rank_F.tolist() != pytest.approx(expected_F.tolist(), rel=1e-3, nan_ok=True)

    assert first["real"] == second["real"] == [count_phases_of(three_groups(0))]
    assert sum(first["all"][0]) == first["own"] + second["own"]  # the plot counts the chunks of both


def count_phases_of(groups):
    phases = [phase for group in groups for t in group.trajectories for phase in trajectory_phases(t).tolist()]
    return [phases.count(phase) for phase in range(len(PHASES))]


class SaveRows(L.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        rows = [row for batch, kept in zip(pl_module.seen, pl_module.rows_seen(), strict=True)
                if batch.token_mask_NLA.any() for row in kept]  # fmt: skip
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(rows))


@pytest.mark.parametrize("make_mask", [lambda: GlobalPCM(budget=3), lambda: PCM(budget=3, estimator="ht")])
def test_two_ranks_keep_what_one_would(tmp_path, make_mask):
    def rows(folder, data, **options):
        folder.mkdir()
        train(folder, make_mask(), SaveRows(folder), data=data, **options)
        return sorted(
            row for path in folder.iterdir() if path.suffix == ".json" for row in json.loads(path.read_text())
        )

    alone = rows(tmp_path / "one", MadeData(three_groups))
    assert rows(tmp_path / "two", UnequalData(three_groups), devices=2, strategy="ddp_fork") == alone
    assert len(alone) >= 3 * 12 - 3  # 12 trajectories; one may have fewer chunks than the budget
