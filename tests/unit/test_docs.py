"""The examples of the documentation run as they are printed."""

import re
import sys
from pathlib import Path

import pytest

from tests.make import train
from vla_rl.build import build, check
from vla_rl.compose import compose

ROOT = Path(__file__).parents[2]


@pytest.fixture
def my_pkg(tmp_path, monkeypatch):
    """Write the python blocks that begin with `# my_pkg/<file>` into a package on the path."""
    monkeypatch.syspath_prepend(tmp_path)
    for document in ("README.md", "docs/methods.md"):
        for name, code in re.findall(r"```python\n# (my_pkg/\w+\.py)\n(.*?)```", (ROOT / document).read_text(), re.S):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(code)
    yield tmp_path / "my_pkg"
    for name in [name for name in sys.modules if name.split(".")[0] == "my_pkg"]:
        del sys.modules[name]


def test_the_mask_of_the_readme_is_loaded_and_masks(my_pkg, tmp_path):
    config = compose(["conf=pcm_object_tiny", "mask._target_=my_pkg.last_chunks.LastChunks", "mask.budget=4"])
    check(config)
    mask = build(config.mask, "mask")
    module = train(tmp_path / "run", mask)
    assert mask.metrics() == {"last_chunks/failure_share": 0.5}
    for batch in module.seen:
        for index, trajectory in enumerate(batch.trajectories):
            kept = batch.chunk_N[batch.trajectory_N == index].tolist()
            assert len(kept) == min(4, len(trajectory))
            if not trajectory.success:
                assert kept == list(range(len(trajectory)))[-4:]


def test_the_labeller_of_the_docs(my_pkg, tmp_path):
    config = compose(["conf=pcm_object_tiny", "mask.labeller=my_pkg.halves.halves"])
    mask = build(config.mask, "mask")
    train(tmp_path / "run", mask)
    assert mask.scores.phases == ("early", "late") and len(mask.history[0]["divergence"]) == 2


def test_the_commands_of_the_docs_compose():
    text = "".join((ROOT / name).read_text() for name in ("docs/methods.md", "docs/scaling.md", "README.md"))
    commands = re.findall(r"^python -m vla_rl\.fit (conf=.*?)(?:\s+#.*)?$", text, re.M)
    assert len(commands) >= 5
    for command in commands:
        compose([*command.split(), "policy.checkpoint=folder"])
