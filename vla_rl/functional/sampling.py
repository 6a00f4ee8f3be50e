"""Which chunks of a trajectory are kept, as pure functions: weighted draws, how probable each chunk is, estimators.

Shapes: see `vla_rl.types`, and
    K  the chunks kept of one trajectory
    F  phases
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

NODES = 1024  # of the quadrature in `plackett_luce_inclusion`
MOST_STRETCH = 10.0  # of its nodes; more would leave none where the integrand is, beside weights a thousandfold smaller


def select_chunks(weight_N: Tensor, budget: int, generator: torch.Generator) -> Tensor:
    """Weighted sampling without replacement: draw one chunk in proportion to the weights, then the next among the rest.

    By the Gumbel top-k trick (Kool et al., arXiv 1903.06059): the k largest of log w + Gumbel noise are such a draw.

    Args:
        weight_N: >= 0; a chunk of weight 0 is never drawn.
        budget: chunks to draw at most.
        generator: its device must be that of `weight_N`.

    Returns:
        sorted int64 indices, min(budget, chunks of positive weight) of them.
    """
    drawable = int((weight_N > 0).sum())
    return gumbel_key(weight_N, generator).topk(min(budget, drawable)).indices.sort().values


def gumbel_key(weight_N: Tensor, generator: torch.Generator) -> Tensor:
    """log w + Gumbel noise, float64 [N]: the k chunks with the largest keys are a weighted draw without replacement."""
    # -log(Exponential) is Gumbel noise; torch draws exponentials that are never 0, so no key is infinite
    noise_N = -torch.empty_like(weight_N, dtype=torch.float64).exponential_(generator=generator).log()
    return weight_N.double().log() + noise_N


def plackett_luce_inclusion(weight_N: Tensor, budget: int) -> Tensor:
    """The probability that `select_chunks` draws each chunk.

    The draw is a race of exponential clocks of rates w; chunk k is drawn when fewer than `budget` others come first:

        pi_k = integral over u in (0, 1) of P(fewer than `budget` of j != k have 1 - u^(w_j / w_k) succeed) du

    a Poisson-binomial tail, summed up here by dynamic programming at the nodes of a midpoint rule. Errors stay below
    1e-5 where weights differ by up to tenfold, and below 1e-3 beyond.

    Returns:
        float64 [N]; they add up to min(budget, chunks of positive weight).

    Example: weights .6 .3 .1, two draws -> .924 .783 .293.
    """
    weight_N = weight_N.double()
    drawable = weight_N > 0
    if budget >= int(drawable.sum()):
        return drawable.double()
    inclusion_N = torch.zeros_like(weight_N)
    # u = v^stretch keeps u^(w_j / w_k) smooth at 0 where w_j is far below w_k
    v = (torch.arange(NODES, dtype=torch.float64) + 0.5) / NODES
    for weight in weight_N[drawable].unique():
        same = (weight_N == weight).nonzero().squeeze(1)
        others = weight_N[drawable].tolist()
        others.remove(float(weight))
        stretch = min(max(1.0, float(weight) / min(others)), MOST_STRETCH)
        before = torch.zeros(NODES, budget, dtype=torch.float64)  # P(0, 1, ... budget - 1 others come before)
        before[:, 0] = 1.0
        for other in others:
            later = v[:, None] ** (stretch * other / float(weight))
            come = torch.cat([torch.zeros(NODES, 1, dtype=torch.float64), before[:, :-1]], dim=1)
            before = before * later + come * (1 - later)
        inclusion_N[same] = (before.sum(1) * stretch * v ** (stretch - 1)).mean()
    return inclusion_N


def proportional_inclusion(weight_N: Tensor, budget: int) -> Tensor:
    """Inclusion probabilities in proportion to the weights, none above 1, that add up to the budget.

        pi_k = min(1, c w_k)

    What capping at 1 leaves over is shared out among the others, again in proportion.

    Returns:
        float64 [N].

    Example: weights 6 1 1, budget 2 -> 1 .5 .5.
    """
    weight_N = weight_N.double()
    drawable = weight_N > 0
    if budget >= int(drawable.sum()):
        return drawable.double()
    certain = torch.zeros_like(drawable)
    while True:
        open_weight = weight_N.masked_fill(certain, 0.0)
        inclusion_N = open_weight * ((budget - int(certain.sum())) / open_weight.sum())
        over = inclusion_N >= 1
        if not over.any():
            return inclusion_N.masked_fill(certain, 1.0)
        certain |= over


def systematic_sample(inclusion_N: Tensor, generator: torch.Generator) -> Tensor:
    """A draw of exactly sum(pi) chunks that includes each with exactly its probability (systematic PPS, Madow 1949).

    The probabilities are laid end to end on a line; one uniform number u picks those that hold u, u + 1, u + 2, ...

    Returns:
        sorted int64 indices.
    """
    start = torch.rand((), generator=generator, dtype=torch.float64)
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), inclusion_N.double().cumsum(0)])
    edges[-1] = edges[-1].round()  # the sum is whole, but for rounding
    ticks = (edges - start).ceil()  # how many of u, u + 1, ... lie before each edge
    return (ticks.diff() > 0).nonzero().squeeze(1)


class Estimator(NamedTuple):
    """How chunks are drawn by weight, and how those kept then count in the loss (`losses.token_weight`)."""

    inclusion: Callable[[Tensor, int], Tensor]  # weight_N, budget -> probability of each chunk to be kept [N]
    draw: Callable[[Tensor, int, torch.Generator], Tensor]  # weight_N, budget, generator -> sorted rows
    # inclusion_K, tokens_K, tokens of the whole trajectory -> weight_K and share_K: what a token of each kept chunk
    # counts in the loss, and in the sum the loss is divided by. None: every kept token counts once, which is biased
    # towards what is drawn often (the paper's own, on purpose)
    loss_weights: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None


def systematic_chunks(weight_N: Tensor, budget: int, generator: torch.Generator) -> Tensor:
    """`systematic_sample` with probabilities in proportion to the weights."""
    return systematic_sample(proportional_inclusion(weight_N, budget), generator)


def horvitz_thompson(inclusion_K: Tensor, tokens_K: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """sum_k l_k / pi_k, divided by the tokens of the whole trajectory: unbiased (Horvitz & Thompson, 1952).

    Divided by tokens, not by chunks, because the last chunk may have fewer.
    """
    return 1 / inclusion_K, torch.full_like(inclusion_K, tokens / float(tokens_K.sum()))


def hajek(inclusion_K: Tensor, tokens_K: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """sum_k l_k / pi_k, divided by sum_k 1 / pi_k over tokens: slightly biased, of lower variance (Hajek, 1971)."""
    return 1 / inclusion_K, 1 / inclusion_K


ESTIMATORS = {
    "paper": Estimator(plackett_luce_inclusion, select_chunks, None),
    "ht": Estimator(proportional_inclusion, systematic_chunks, horvitz_thompson),
    "hajek": Estimator(proportional_inclusion, systematic_chunks, hajek),
}


def top_chunks(weight_N: Tensor, budget: int, generator: torch.Generator) -> Tensor:
    """The chunks of the largest weights, sorted; of equal ones the earlier. Nothing is drawn, and none of weight 0.

    Example: weights 1 3 0 3, budget 2 -> 1 3; budget 4 -> 0 1 3.
    """
    order = weight_N.sort(descending=True, stable=True).indices
    return order[: min(budget, int((weight_N > 0).sum()))].sort().values


def top_inclusion(weight_N: Tensor, budget: int) -> Tensor:
    """1 for the chunks that `top_chunks` keeps, else 0; float64 [N]."""
    inclusion_N = torch.zeros(len(weight_N), dtype=torch.float64)
    inclusion_N[top_chunks(weight_N, budget, torch.Generator())] = 1.0
    return inclusion_N


TOP = Estimator(top_inclusion, top_chunks, None)  # what is kept counts once: a choice, not an estimate


def top_threshold(count_above: Callable[[float], int], keep: int) -> float:
    """The threshold above which the `keep` largest keys lie; below all of them where there are no more.

    By bisection, so that ranks need to exchange nothing but counts.

    Args:
        count_above: how many keys lie above a threshold, over all ranks; keys lie in (-1e6, 1e6) and differ.
    """
    low, high = -1e6, 1e6
    for _ in range(80):  # halves the interval down to neighbouring float64s of the keys' size
        middle = (low + high) / 2
        if count_above(middle) > keep:
            low = middle
        else:
            high = middle
    return high
