import pytest
import torch

from vla_rl.functional.distillation import distillation_advantage
from vla_rl.functional.losses import clipped_loss


def test_worked_out_by_hand():
    """Probabilities .5, .8, .1, .3 of the student, .25, .8, .4, .9 of the teacher; the last number was not executed."""
    student, teacher = (torch.tensor([[p]]).log() for p in ([0.5, 0.8, 0.1, 0.3], [0.25, 0.8, 0.4, 0.9]))
    counted = torch.tensor([[[True, True, True, False]]])
    found = distillation_advantage(teacher, student, counted)
    assert found.flatten().tolist() == pytest.approx([-0.693147, 0.0, 1.386294, 0.0], abs=1e-5)


def test_they_descend_the_divergence_from_the_teacher():
    """The expected gradient over all draws of one number is that of KL(student || teacher)."""
    logits = torch.tensor([0.3, -1.0, 0.6], requires_grad=True)
    teacher = torch.tensor([0.2, 0.5, 0.3]).log()
    (kl_gradient,) = torch.autograd.grad((logits.softmax(0) * (logits.log_softmax(0) - teacher)).sum(), logits)
    student_NLA, teacher_NLA = logits.log_softmax(0)[:, None, None], teacher[:, None, None]  # a row for each draw
    advantage = distillation_advantage(teacher_NLA, student_NLA.detach(), torch.ones(3, 1, 1, dtype=torch.bool))
    weight_NLA = student_NLA.detach().exp()  # how often it is drawn
    loss, _ = clipped_loss(student_NLA, student_NLA.detach(), advantage, weight_NLA, clip_low=0.2, clip_high=0.2)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, kl_gradient)


def test_the_loss_takes_one_advantage_per_number():
    """Ratios 1, 1.5 and .5, advantages 2, 1 and -1, weights .5, .25, .25, clip .2: -(1 + .25 x 1.2 - .25 x .8)."""
    logprob = torch.tensor([[[1.0, 1.5, 0.5]]]).log()
    advantage, weight = torch.tensor([[[2.0, 1.0, -1.0]]]), torch.tensor([[[0.5, 0.25, 0.25]]])
    loss, _ = clipped_loss(logprob, torch.zeros(1, 1, 3), advantage, weight, clip_low=0.2, clip_high=0.2)
    assert float(loss) == pytest.approx(-1.1)
