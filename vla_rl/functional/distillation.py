"""On-policy distillation as a pure function. Shapes: see `vla_rl.types`."""

from __future__ import annotations

from torch import Tensor


def distillation_advantage(teacher_logprob_NLA: Tensor, logprob_NLA: Tensor, token_mask_NLA: Tensor) -> Tensor:
    """How much likelier the teacher finds each number that the student drew (GKD with the student's own outputs, arXiv
    2306.13649; MiniLLM, arXiv 2306.08543, Eq 3 without the terms of later tokens).

        A_t = log pi_teacher(a_t | s_t) - log pi_student(a_t | s_t)

    As the advantages of a policy gradient on the student's rollouts they descend the reverse Kullback-Leibler
    divergence of each number's distribution: E[A_t grad log pi_student(a_t)] = -grad KL(pi_student || pi_teacher).

    Args:
        teacher_logprob_NLA, logprob_NLA: of the same draws, at the same temperature.
        token_mask_NLA: bool, what was executed.

    Returns:
        [N, L, A], zero where the mask is False.

    Example: the student drew with probability .5, .8 and .1 what the teacher gives .25, .8 and .4 -> -ln 2, 0, ln 4.
    """
    assert teacher_logprob_NLA.shape == logprob_NLA.shape == token_mask_NLA.shape
    return (teacher_logprob_NLA - logprob_NLA).masked_fill(~token_mask_NLA, 0.0)
