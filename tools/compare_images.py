"""What the JPEG round trip of the published image path changes: logits, greedy tokens, and time per frame.

    python tools/compare_images.py policy=openvla_oft_tiny
    python tools/compare_images.py policy=openvla_oft_7b policy.checkpoint=FOLDER sft.demos=FILE

Frames are of the demonstrations `sft.demos` (default: the shipped ones), every 10th control step. All arguments are
those of `python -m vla_rl.fit`. The last line is JSON. Without a GPU, times are CPU times.
"""

from __future__ import annotations

import json
import time

import torch

from vla_rl.config.compose import compose
from vla_rl.config.instantiate import build
from vla_rl.demos.load import load_demos
from vla_rl.policy.openvla_oft.processor import PIPELINES
from vla_rl.run.cli import answer_early, run_entry
from vla_rl.types import Observation

EVERY_STEPS, MOST_FRAMES = 10, 64


@torch.no_grad()
def main(argv: list[str]) -> None:
    config = compose(["conf=sft_object_tiny", *argv])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    policy = build(config.policy, "policy").to(device)
    rows = [(demo, t) for demo in load_demos(config.sft.demos) for t in range(0, len(demo), EVERY_STEPS)][:MOST_FRAMES]
    observation = Observation(
        torch.cat([demo.frame_THWC[[t]] for demo, t in rows]),
        torch.stack([demo.proprio_TP[t] for demo, t in rows]),
        [demo.instruction for demo, _ in rows],
    )
    logits, seconds = {}, {}
    frames = observation.frame_NHWC.to(device)
    for name, pipeline in PIPELINES.items():
        policy.pixels = pipeline(policy.files.preprocessor, policy.model.config.towers[0].image_px).to(device)
        policy.pixels(frames, torch.float32)  # the first call makes matrices
        began = clock()
        policy.pixels(frames, torch.float32).sum().item()
        seconds[name] = (clock() - began) / len(rows)
        logits[name] = policy.logits(observation)
    difference = (logits["oft"] - logits["fast"]).abs()
    same = logits["oft"].argmax(-1) == logits["fast"].argmax(-1)
    line = {
        "frames": len(rows),
        "logits_abs_difference_mean": difference.mean().item(),
        "logits_abs_difference_max": difference.max().item(),
        "logits_std": logits["oft"].std().item(),
        "greedy_tokens_equal": same.float().mean().item(),
        "ms_per_frame": {name: 1e3 * value for name, value in seconds.items()},
    }
    print(json.dumps(line))


if __name__ == "__main__":
    answer_early(__doc__, parse=None)
    run_entry(main)
