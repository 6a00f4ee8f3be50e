"""`mask=pcm` as it ships keeps exactly what it kept when its first results were measured."""

import json
from pathlib import Path

import pytest

from callbacks.masks.pcm import PCM
from tests.helpers.make import MadeData, train

GOLDEN = Path(__file__).parents[3] / "golden" / "pcm_default" / "expected.json"


def test_the_default_mask_is_the_one_that_results_were_measured_with(tmp_path):
    expected = json.loads(GOLDEN.read_text())
    pcm = PCM(budget=4, refresh_every=2)
    module = train(tmp_path, pcm, data=MadeData(seed=7), iterations=5)
    assert module.rows_seen() == expected["rows"]  # 40 trajectories of 3 to 15 chunks over five iterations
    for row, keep_prob, divergence in zip(pcm.history, expected["keep_prob"], expected["divergence"], strict=True):
        assert row["keep_prob"] == pytest.approx(keep_prob, rel=1e-6)  # float32 means, on whatever processor
        assert [v for v in row["divergence"] if v == v] == pytest.approx([v for v in divergence if v is not None])
