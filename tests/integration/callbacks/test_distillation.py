"""A teacher's advantages on the toy world: what they are, that they teach, and which teachers are refused."""

from types import SimpleNamespace

import pytest
import torch

from callbacks.distillation import Distillation
from tests.helpers.toy import ToyPolicy, ToyPool
from tests.helpers.toy_training import fit
from vla_rl.errors import UserError
from vla_rl.rollout.callback import RolloutCallback
from vla_rl.types import ChunkBatch

DISTILL = {"advantage": "distill", "group_filter": "keep", "entropy_coef": 0.0}


def make_teacher():
    teacher = ToyPolicy()
    with torch.no_grad():
        teacher.head.weight.neg_()
    return teacher


class Keep(RolloutCallback):
    def set_advantages(self, groups):
        self.trajectories = [t for group in groups for t in group.trajectories]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        batch.select_(torch.arange(len(batch) - 1, 0, -2))  # as a mask does, in another order
        self.batch = batch


def test_advantages_are_the_teachers_log_probability_minus_the_students(tmp_path):
    keep, teacher = Keep(), make_teacher()
    _, _, _, recorder = fit(tmp_path, iterations=1, callbacks=[Distillation(teacher), keep], **DISTILL)
    total, count = 0.0, 0
    for t in keep.trajectories:
        batch = ChunkBatch.from_trajectories([t])
        expected = (teacher.log_prob(batch, 1.0)[0] - t.actions.logprob_NLA).detach()
        found = t.actions.extras["advantage"]
        torch.testing.assert_close(found[batch.token_mask_NLA], expected[batch.token_mask_NLA])
        assert not found[~batch.token_mask_NLA].any()
        assert float(t.advantage_N[-1]) == pytest.approx(float(expected[-1][batch.token_mask_NLA[-1]].mean()), abs=1e-5)
        total -= float(expected[batch.token_mask_NLA].sum())
        count += int(batch.token_mask_NLA.sum())
    assert recorder.metrics[0]["distill/kl"] == pytest.approx(total / count, rel=1e-4)
    assert any(int(t.executed_N[-1]) < t.window for t in keep.trajectories)  # the mask has something to leave out
    rows = {float(t.actions.extras["advantage"][c].sum()) for t in keep.trajectories for c in range(len(t))}
    assert {float(row.sum()) for row in keep.batch.finest_advantage} <= rows
    assert keep.batch.finest_advantage.shape == keep.batch.actions.logprob_NLA.shape


def test_the_student_approaches_the_teacher_and_the_teacher_stays(tmp_path):
    teacher = make_teacher()
    _, module, _, recorder = fit(tmp_path, iterations=5, callbacks=[Distillation(teacher)], epochs=4, **DISTILL)
    kl = [metrics["distill/kl"] for metrics in recorder.metrics]
    assert kl[0] > 0.1
    assert kl[-1] < 0.1 * kl[0]
    assert torch.equal(teacher.head.weight, make_teacher().head.weight)
    assert not any("teacher" in name for name in module.state_dict())


@pytest.mark.parametrize(
    ("of", "attribute", "value", "line"),
    [
        ("student", "action_code", None, "ToyPolicy draws numbers that no other policy can score: grpo.advantage=grpo"),
        (
            "teacher",
            "chunk_steps",
            8,
            "the teacher decides 8 control steps at a time, the policy 2: grpo.teacher=FOLDER",
        ),
        ("teacher", "action_code", "other", "the teacher's action tokens stand for other commands than the policy's"),
        ("teacher", "images", 2, "the policy reads 2 images per decision, the simulators render 1"),
    ],
)
def test_a_teacher_that_cannot_score_the_student_is_refused(of, attribute, value, line, monkeypatch):
    policies = {"student": ToyPolicy(), "teacher": ToyPolicy()}
    policies[of].__class__ = type("ToyPolicy", (ToyPolicy,), {attribute: value})
    data = SimpleNamespace(pool=ToyPool(), policy=policies["student"])
    with pytest.raises(UserError) as refused:
        Distillation(policies["teacher"]).check_run(data, [])
    assert str(refused.value).startswith(line)
