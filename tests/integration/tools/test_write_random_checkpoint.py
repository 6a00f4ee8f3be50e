"""`tools/write_random_checkpoint.py`, with the published config's entries at small widths."""

import pytest
import torch
from safetensors.torch import load_file

from tools.write_random_checkpoint import main, write
from vla_rl.errors import UserError
from vla_rl.policy import load_policy
from vla_rl.policy.openvla_oft.config import PUBLISHED_7B
from vla_rl.policy.openvla_oft.tiny import tiny_config
from vla_rl.types import Observation

TOWER = {"embed_dim": 32, "depth": 2, "num_heads": 2}
NARROW = PUBLISHED_7B | {
    "text_config": tiny_config()["text_config"] | PUBLISHED_7B["text_config"],
    "tiny_overrides": {"dinov2": TOWER, "siglip": TOWER},
}


def test_what_is_written_loads_and_acts(tmp_path):
    write(tmp_path, 3, seed=1, sizes=NARROW)
    weights = load_file(tmp_path / "model.safetensors")
    layers = {name.split(".")[3] for name in weights if name.startswith("language_model.model.layers.")}
    assert layers == {"0", "1", "2"}
    assert weights["language_model.lm_head.weight"].dtype == torch.bfloat16
    policy = load_policy(str(tmp_path), dtype="bfloat16", lora={"r": 2, "alpha": 2})
    frame_NHWC = torch.full((2, 224, 224, 3), 100, dtype=torch.uint8)
    soup = "pick up the alphabet soup and place it in the basket"
    chunk = policy.act(Observation(frame_NHWC, torch.zeros(2, 8), [soup] * 2), [1, 2], 1.6)
    assert chunk.command_NLA.shape == (2, 8, 7) and chunk.logprob_NLA.isfinite().all()


def test_what_it_refuses(tmp_path):
    with pytest.raises(UserError, match="--layers must be an integer >= 1 and <= 32, got 33"):
        main([str(tmp_path / "new"), "--layers", "33"])
    (tmp_path / "kept.txt").touch()
    with pytest.raises(UserError, match="is not empty: name a new folder"):
        main([str(tmp_path)])
