"""Diagnostics: they measure what they say, and change nothing."""

import lightning as L
import pytest
import torch

from callbacks.masks.global_mask import GlobalPCM
from callbacks.masks.pcm import PCM
from callbacks.masks.random_mask import RandomMask
from callbacks.monitors.diagnostics import Diagnostics
from callbacks.monitors.memory import ActivationMemory
from tests.helpers.toy_training import Rewards, fit
from vla_rl.functional.phases import PHASES
from vla_rl.policy.activations import SavedBytes


class TestGradient:
    def test_it_changes_nothing(self, tmp_path):
        _, plain, _, _ = fit(tmp_path, callbacks=[PCM(budget=2)])
        _, watched, _, recorder = fit(tmp_path, callbacks=[PCM(budget=2), Diagnostics(every_iterations=1)])
        assert torch.equal(plain.policy.head.weight, watched.policy.head.weight)
        assert "diag/grad_cosine" in recorder.metrics[1]

    def test_without_a_mask_the_gradients_are_the_same(self, tmp_path):
        _, _, _, recorder = fit(tmp_path, iterations=1, callbacks=[Diagnostics()])
        assert recorder.metrics[0]["diag/grad_cosine"] == pytest.approx(1.0, abs=1e-6)
        assert recorder.metrics[0]["diag/grad_norm_ratio"] == pytest.approx(1.0, abs=1e-6)

    def test_with_a_mask_they_are_those_of_the_two_runs(self, tmp_path):
        _, _, _, none = fit(tmp_path, iterations=1)
        _, _, _, masked = fit(tmp_path, iterations=1, callbacks=[RandomMask(budget=1), Diagnostics()])
        full, kept = none.gradients[0], masked.gradients[0]  # of the first step
        cosine = float(full @ kept / (full.norm() * kept.norm()))
        assert masked.metrics[0]["diag/grad_cosine"] == pytest.approx(cosine, abs=1e-5)
        assert cosine < 0.99
        assert masked.metrics[0]["diag/grad_norm_ratio"] == pytest.approx(float(kept.norm() / full.norm()), rel=1e-5)

    def test_every_so_many_iterations(self, tmp_path):
        _, _, _, recorder = fit(tmp_path, iterations=3, callbacks=[RandomMask(budget=1), Diagnostics(2), Forget()])
        assert ["diag/grad_cosine" in metrics for metrics in recorder.metrics] == [True, False, True]

    def test_nothing_to_learn(self, tmp_path):
        _, _, _, recorder = fit(tmp_path, callbacks=[RandomMask(budget=1), Rewards(1, 1, 1, 1), Diagnostics(1)])
        assert "diag/grad_cosine" not in recorder.metrics[0]
        assert recorder.metrics[0]["diag/expected/approach"] == 0


class Forget(L.Callback):
    """Lightning keeps the last value of a tag; the callback of metrics clears it in the program."""

    def on_train_epoch_start(self, trainer, pl_module):
        trainer.callback_metrics.clear()


class TestExpectedAllocation:
    def test_adds_up_to_what_is_kept(self, tmp_path):
        _, _, _, recorder = fit(tmp_path, iterations=1, callbacks=[PCM(budget=2), Diagnostics()])
        metrics = recorder.metrics[0]
        expected = sum(metrics[f"diag/expected/{phase}"] for phase in PHASES)
        assert expected == pytest.approx(metrics["chunks/kept"], abs=1e-2)  # at least two chunks each: exactly two

    def test_masks_that_cannot_say(self, tmp_path):
        _, _, _, recorder = fit(tmp_path, iterations=1, callbacks=[GlobalPCM(budget=2), Diagnostics()])
        assert not [name for name in recorder.metrics[0] if name.startswith("diag/expected")]


class TestMemory:
    def test_what_a_layer_keeps(self):
        layer = torch.nn.Linear(10, 20)
        meter = SavedBytes(list(layer.parameters()))
        x = torch.randn(5, 10)
        with meter.hooks():
            hidden = layer(x)  # keeps x: 5 * 10 * 4 bytes (and the weight, which is no activation)
            loss = hidden.relu().square().sum()  # relu keeps its result, square the same one: 5 * 20 * 4 bytes
            assert meter.peak == meter._now == 5 * 10 * 4 + 5 * 20 * 4
            loss.backward()
        assert meter._now == 0
        assert meter.peak == 600

    def test_it_grows_with_the_rows(self, tmp_path):
        def peak(mask):
            callbacks = [mask, ActivationMemory(every_iterations=1)]
            _, _, _, recorder = fit(tmp_path, iterations=1, micro_rows=1000, callbacks=callbacks)
            return recorder.metrics[0]["memory/activations_mb"] / recorder.metrics[0]["chunks/kept"]

        assert peak(RandomMask(budget=1)) == pytest.approx(peak(RandomMask(budget=6)), rel=0.3)  # per row

    def test_it_changes_nothing(self, tmp_path):
        _, plain, _, _ = fit(tmp_path)
        _, watched, _, _ = fit(tmp_path, callbacks=[ActivationMemory(every_iterations=1)])
        assert torch.equal(plain.policy.head.weight, watched.policy.head.weight)


@pytest.mark.parametrize(("callback", "slot"), [(Diagnostics, "diagnostics"), (ActivationMemory, "memory")])
def test_wrong_options(callback, slot):
    with pytest.raises(ValueError, match=rf"an integer >= 1, got 0 \(callbacks.{slot}.every_iterations=10\)$"):
        callback(every_iterations=0)
