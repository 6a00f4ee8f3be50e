"""The phase counts, the figures, and their resume."""

import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.masks.padded import FullPadded
from callbacks.masks.pcm import PCM
from callbacks.monitors.phase_plot import PhasePlot
from tests.helpers.make import MadeData, MadeModule, made_trainer, make_trajectory, random_groups, train
from vla_rl.figures.phases import (
    draw_allocation,
    draw_cumulative_divergence,
    draw_divergence,
    draw_phase_divergence,
    trailing_mean,
)
from vla_rl.functional.phases import PHASES
from vla_rl.types import RolloutGroup


def one_group(iteration):
    """Real chunks: approach 3 (1 and 2), pre_grasp 6, active_grip 3, release_ramp 3, tail 2."""
    return [
        RolloutGroup([
            make_trajectory([0, 0, 0, 0, 8, 8], uid=0, advantage=1.0),
            make_trajectory([0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0], uid=1, success=False, advantage=-1.0),
        ])
    ]  # fmt: skip


REAL = [3, 6, 3, 3, 2]


class FirstTwo(L.Callback):
    """A mask that keeps two chunks of each trajectory."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        batch.select_((batch.chunk_N < 2).nonzero().squeeze(1))


class AtEpochEnd(L.Callback):
    """What another callback reads at the end of an epoch."""

    def on_train_epoch_end(self, trainer, pl_module):
        self.metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}


class TestCounts:
    def test_without_a_mask_everything_is_kept(self, tmp_path):
        plot = PhasePlot()
        train(tmp_path, plot, data=MadeData(one_group))
        assert plot.real == plot.kept == [REAL]
        assert plot.iterations == [0]

    def test_with_a_mask(self, tmp_path):
        plot = PhasePlot()
        train(tmp_path, plot, FirstTwo(), data=MadeData(one_group))
        assert plot.real == [REAL]
        assert plot.kept == [[3, 1, 0, 0, 0]]  # aP of the first trajectory, aa of the second

    def test_padding_belongs_to_no_phase(self, tmp_path):
        plot = PhasePlot()
        train(tmp_path, FullPadded(), plot, data=MadeData(one_group))
        assert plot.kept == [REAL]

    def test_passes_count_once(self, tmp_path):
        plot = PhasePlot()
        train(tmp_path, FirstTwo(), plot, data=MadeData(one_group, passes=3), iterations=2)
        assert plot.real == [REAL] * 2
        assert plot.kept == [[3, 1, 0, 0, 0]] * 2

    @pytest.mark.parametrize(("stand_in", "real"), [(True, [0] * 5), (False, REAL)])
    def test_a_batch_with_nothing_to_learn_keeps_nothing(self, tmp_path, stand_in, real):
        class Blank(L.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                batch.token_mask_NLA.zero_()
                batch.stand_in = stand_in  # else a mask has kept nothing of real trajectories

        plot = PhasePlot()
        train(tmp_path, Blank(), plot, data=MadeData(one_group))
        assert plot.real == [real]
        assert plot.kept == [[0] * 5]  # and is drawn without an error

    def test_others_can_read_the_log_in_any_order(self, tmp_path):
        before = AtEpochEnd()
        train(tmp_path, before, PhasePlot(), FirstTwo(), data=MadeData(one_group))
        assert [before.metrics[f"phase/real/{phase}"] for phase in PHASES] == REAL
        assert [before.metrics[f"phase/kept/{phase}"] for phase in PHASES] == [3, 1, 0, 0, 0]


class TestFigures:
    def test_files_and_tensorboard(self, tmp_path):
        logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
        train(tmp_path, PCM(budget=4), PhasePlot(every_iterations=2), iterations=3, logger=logger)
        for name in ("phase_allocation", "divergence", "phase_divergence", "cumulative_divergence"):
            image = imread(tmp_path / "figures" / f"{name}.png")
            assert image.shape[1] > image.shape[0] > 400  # readable
            assert len({tuple(pixel) for pixel in image.reshape(-1, 4)[::7].tolist()}) > 20  # not blank
        logger.finalize("success")
        events = EventAccumulator(logger.log_dir)
        events.Reload()
        for name in ("phase_allocation", "divergence", "phase_divergence", "cumulative_divergence"):
            # after the second iteration and at the end, where Lightning puts their scalars
            scalars = [scalar.step for scalar in events.Scalars("phase/real/approach")]
            assert [image.step for image in events.Images(f"figures/{name}")] == scalars[1:] == [3, 5]

    def test_without_statistics_there_is_no_divergence_figure(self, tmp_path):
        train(tmp_path, PhasePlot(every_iterations=1))
        assert [path.name for path in (tmp_path / "figures").iterdir()] == ["phase_allocation.png"]

    def test_allocation(self):
        figure = draw_allocation([0, 1], [[2, 2, 0, 0, 0], [4, 0, 0, 0, 0]], [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
        real, kept, count = figure.axes
        # tops of the approach and pre_grasp steps: 2 of 4 and 4 of 4 chunks
        assert real.patches[0].get_data().values.tolist() == [50.0, 100.0]
        assert real.patches[1].get_data().values.tolist() == [100.0, 100.0]
        assert real.patches[1].get_data().baseline.tolist() == [50.0, 100.0]
        assert kept.patches[0].get_data().values.tolist() == [100.0, 0.0]
        assert count.patches[0].get_data().values.tolist() == [1, 0]
        assert count.patches[-1].get_data().values.tolist() == [4, 4]
        assert count.get_xlim() == (-0.5, 1.5)
        assert [text.get_text() for text in figure.legends[0].get_texts()] == list(PHASES)

    def test_divergence(self):
        row = {"divergence": [1.0, math.nan, 0.5, 0.2, 0.1], "keep_prob": [1.0, 0.1, 0.5, 0.2, 0.1]}
        row["divergence_no_gripper"] = row["divergence"]
        figure = draw_divergence([row, row])
        assert [text.get_text() for text in figure.legends[0].get_texts()] == list(PHASES)
        assert figure.axes[2].lines[2].get_ydata().tolist() == [0.5, 0.5]

    def test_phase_divergence(self):
        history = [
            {"divergence": [1.0, math.nan], "divergence_no_gripper": [0.5, math.nan]},
            {"divergence": [2.0, math.nan], "divergence_no_gripper": [0.5, math.nan]},
        ]
        figure = draw_phase_divergence(history, ("early", "late"))
        axes = figure.axes[0]
        assert [bar.get_height() for bar in axes.patches] == [1.5, 0.0, 0.5, 0.0]  # early, late; then without gripper
        assert [text.get_text() for text in axes.texts] == ["1.50", "-", "0.50", "-"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["early", "late"]

    def test_cumulative_divergence(self):
        # C_c .5 and 1 on average; 30 and 10 chunks in 4 trajectories: a quarter of the chunks has 10 / 25 of the score
        history = [
            {"divergence": [0.5, 1.0], "chunks": [20.0, 5.0], "trajectories": 2.0},
            {"divergence": [0.5, math.nan], "chunks": [10.0, 5.0], "trajectories": 2.0},
        ]
        axes = draw_cumulative_divergence(history, ("early", "late")).axes[0]
        assert list(axes.lines[1].get_xdata()) == [0.0, 0.25, 1.0]
        assert list(axes.lines[1].get_ydata()) == pytest.approx([0.0, 0.4, 1.0])
        assert axes.get_legend().get_texts()[1].get_text() == "knee: 2.5 chunks of a trajectory, 40% of $C_c$"

    def test_trailing_mean(self):
        # means of [1], [1], [1, 4], [4, 6]; a window of NaN alone is NaN
        means = trailing_mean([math.nan, 1.0, 4.0, 6.0], window=2)
        assert math.isnan(means[0])
        assert means[1:] == [1.0, 2.5, 5.0]


def test_resume_continues_the_history(tmp_path):
    def run(iterations, checkpoint=None):
        plot = PhasePlot()
        saver = ModelCheckpoint(tmp_path, filename=f"after{iterations}", save_on_train_epoch_end=True)
        trainer = made_trainer(tmp_path, [PCM(budget=3), plot, saver], iterations=iterations, enable_checkpointing=True)
        trainer.fit(MadeModule(), datamodule=MadeData(), ckpt_path=checkpoint, weights_only=True)
        return plot, saver.best_model_path

    whole, _ = run(4)
    _, checkpoint = run(2)
    resumed, _ = run(4, checkpoint)
    assert resumed.iterations == [0, 1, 2, 3]
    assert resumed.state_dict() == whole.state_dict()
    assert torch.tensor(whole.kept).sum(1).ne(torch.tensor(whole.real).sum(1)).all()


def test_wrong_option():
    with pytest.raises(ValueError, match=r"an integer >= 1, got 0 \(callbacks.phase_plot.every_iterations=5\)$"):
        PhasePlot(every_iterations=0)


def test_phases_are_those_of_the_masks_own_labeller(tmp_path):
    plot = PhasePlot()
    train(tmp_path, PCM(budget=2, labeller="time_quantile"), plot, iterations=1)
    assert sum(plot.kept[0]) == 16  # 8 trajectories, 2 chunks each
    lengths = [len(t) for group in random_groups(0) for t in group.trajectories]
    fifths = [torch.arange(n) * 5 // n for n in lengths]
    assert plot.real[0] == torch.cat(fifths).bincount(minlength=5).tolist()
