"""`write_model_card`: the README.md of a policy that is published, from the folder of the run that trained it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from vla_rl.config.compose import compose
from vla_rl.config.schema import Config
from vla_rl.files import read_json
from vla_rl.functional.statistics import SuccessRate
from vla_rl.run.folder import read_rates

VIDEOS = "videos"
MOST_VIDEOS = 8
PROTOCOL = ("suite", "tasks", "horizon", "settle_steps", "chunk_steps", "camera_px", "wrist_camera", "assets",
            "placement_noise_m", "perturb")  # fmt: skip


def write_model_card(folder: Path, run: Path, name: str, checkpoint: str) -> None:
    """Write README.md into `folder`, and copy the run's held-out and last videos beside it.

    Args:
        run: its folder, with config.yaml; success, versions and videos are told if they are there.
        name: of the policy on the hub.
        checkpoint: which of the run's this is.
    """
    config = compose([f"conf={run / 'config.yaml'}"])
    videos = _copy_videos(run, folder)
    header: dict[str, Any] = {
        "library_name": "vla_rl",
        "pipeline_tag": "robotics",
        "tags": ["vla", "reinforcement-learning"],
    }
    base = str((config.policy or {}).get("checkpoint") or "random weights")
    if base.count("/") == 1 and not Path(base).exists():
        header["base_model"] = base
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {name.rpartition('/')[2]}",
        f"A vision-language-action policy from `{base}`, trained by [vla_rl](https://pypi.org/project/vla-rl/) with "
        f"`conf={config.conf}`, seed {config.seed}; checkpoint `{checkpoint}`.",
        _success(run),
        "## Protocol\n\n" + _table(("what", "value"), _protocol(config).items()),
        _versions(run),
        "## Use\n\n```\n" + f"python -m vla_rl.evaluate conf={config.conf} checkpoint={name}\n```",
        "## Videos\n\n" + "\n".join(f"- [{video}]({video})" for video in videos) if videos else "",
    ]
    (folder / "README.md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _success(run: Path) -> str:
    path = run / "summary.json"
    if not path.exists():
        return "Its success was not measured: the run has not ended."
    summary = read_json(path)
    done = summary.get("iterations")
    before, after = (read_rates(summary.get(when), f"{path}: {when}") for when in ("success_before", "success_after"))
    rows = [
        (decoding, _rate(before[decoding]) if decoding in before else "", _rate(rate), str(rate.episodes))
        for decoding, rate in after.items()
    ]
    return (
        f"## Success\n\nOn held-out initial states, before training and after {done} iterations, with "
        "95% Wilson intervals:\n\n" + _table(("decoding", "before", "after", "episodes"), rows)
    )


def _rate(rate: SuccessRate) -> str:
    return f"{rate.rate:.2f} [{rate.wilson_low:.2f}, {rate.wilson_high:.2f}]"


def _protocol(config: Config) -> dict[str, Any]:
    sim = config.sim or {}
    low, high = config.rollout.heldout_init_states
    return {
        **{key: json.dumps(sim[key]) for key in PROTOCOL if key in sim},
        "held-out initial states": f"[{low}, {high})",
        "sampling temperature": config.rollout.temperature,
    }


def _versions(run: Path) -> str:
    path = run / "versions.json"
    stored = read_json(path) if path.exists() else {}
    versions = {name: value for name, value in stored.items() if isinstance(value, str)}
    return "## Versions\n\n" + _table(("package", "version"), versions.items()) if versions else ""


def _copy_videos(run: Path, folder: Path) -> list[str]:
    """Those of held-out episodes and of the last iteration filmed, a few; their names in `folder`."""
    iterations = sorted((run / VIDEOS).glob("iteration_*"), key=lambda path: int(path.name.rpartition("_")[2]))
    filmed = [
        video for source in [run / VIDEOS / "heldout", *iterations[-1:]] for video in sorted(source.glob("*.mp4"))
    ]
    names = []
    for video in filmed[:MOST_VIDEOS]:
        target = folder / VIDEOS / video.parent.name / video.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(video, target)
        names.append(target.relative_to(folder).as_posix())
    return names


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
