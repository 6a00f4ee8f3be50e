"""The examples of the documentation run as they are printed."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from callbacks.monitors.metrics_file import MetricsFile
from tests.helpers.make import make_trajectory, random_groups, train
from vla_rl.config.compose import compose, own_options
from vla_rl.config.instantiate import build, check
from vla_rl.config.schema import EvaluateConfig
from vla_rl.errors import UserError
from vla_rl.evaluation.plan import plan_evaluation
from vla_rl.types import RolloutGroup

ROOT = Path(__file__).parents[3]


@pytest.fixture
def my_pkg(tmp_path, monkeypatch):
    """Write the python blocks that begin with `# my_pkg/<file>` into a package on the path."""
    monkeypatch.syspath_prepend(tmp_path)
    for document in ("README.md", "docs/methods.md", "docs/callbacks.md"):
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
    assert mask.scores.phases == ("early", "late")
    assert len(mask.history[0]["divergence"]) == 2


def test_the_reward_of_the_docs_prefers_early_successes(my_pkg):
    reward = build({"_target_": "my_pkg.early.Early", "horizon": 40}, "reward")
    early, late, failed = (make_trajectory([0] * 2), make_trajectory([0] * 5), make_trajectory([0], success=False))
    reward.score([RolloutGroup([early, late, failed])])
    assert [early.reward, late.reward, failed.reward] == [2 - 16 / 40, 2 - 40 / 40, 0]  # 8 steps a chunk
    with pytest.raises(UserError, match="reward.horizon=144"):
        build({"_target_": "my_pkg.early.Early", "horizon": 0}, "reward")


def test_the_logging_callback_of_the_docs(my_pkg, tmp_path):
    node = {"_target_": "my_pkg.first_action.FirstAction", "dims": 4}
    train(tmp_path, build(node, "callbacks.mine"), MetricsFile())
    logged = json.loads((tmp_path / "metrics.jsonl").read_text())["mine/first_action"]
    # a made trajectory's first action has the same value in all dimensions, so its norm over 4 is twice that
    values = [float(t.actions.action_NLA[0, 0, 0]) for group in random_groups(0) for t in group.trajectories]
    assert logged == pytest.approx(2 * sum(values) / len(values))


def test_the_evaluations_of_the_docs_can_be_planned():
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "".join(document.read_text() for document in documents).replace("\\\n", " ")
    commands = re.findall(r"^python -m vla_rl\.evaluate (conf=.*?)(?:\s+#.*)?$", text, re.M)
    assert len(commands) >= 6
    for command in commands:
        if command.startswith("conf=published"):  # a list, whose rows have a test of their own
            continue
        options, rest = own_options(EvaluateConfig, shlex.split(command))
        config = compose([*rest, "policy.checkpoint=folder"])
        assert plan_evaluation(config, options, given=[argument.partition("=")[0] for argument in rest]).policies
