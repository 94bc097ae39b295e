r"""Sparsemax: probabilities that can be exactly 0, as an activation and with the losses that fit it.

:func:`sparsemax` is the point of the simplex nearest to the scores. Its loss is the Fenchel-Young loss of :math:`\tfrac12 \lVert p \rVert^2`:

.. math:: \ell = \tfrac12 \lVert q \rVert^2 - \tfrac12 \lVert p \rVert^2 + \langle p - q, z \rangle, \qquad p = \mathrm{sparsemax}(z),
          \qquad \frac{\partial \ell}{\partial z} = p - q

for a target distribution *q*: one class, or the labels of a sample in equal shares.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from components.losses.base import IGNORE_INDEX, Loss, Reduction, at_least_float32, check_same_shape, is_readable, reduce_values
from components.losses.scores import checked_scores, score_of_target
from components.validation import require


def sparsemax(scores: Tensor, dim: int = -1) -> Tensor:
    r"""The nearest point of the probability simplex: :math:`\arg\min_p \lVert p - z \rVert^2 = \max(z - \tau, 0)`, most entries exactly 0.

    Differentiable twice; the Jacobian is :math:`\operatorname{diag}(s) - s s^\top / |S|` with *s* the indicator of the support *S*. On the CPU only scores
    within 1 of the highest are sorted: no other has a probability.

    Args:
        scores: any shape, float.
        dim: what adds up to 1.

    Source:
        Martins and Astudillo, "From Softmax to Sparsemax: A Sparse Model of Attention and Multi-Label Classification", ICML 2016,
        arXiv:1602.02068, algorithm 1.
    """
    exact = scores.to(at_least_float32(scores.dtype))
    shifted = exact - exact.detach().amax(dim, keepdim=True)
    support = support_of(shifted, dim)
    tau = ((shifted * support).sum(dim, keepdim=True) - 1) / support.sum(dim, keepdim=True)
    return ((shifted - tau) * support).clamp(min=0).to(scores.dtype)


def conjugate(shifted: Tensor, dim: int) -> Tensor:
    r""":math:`\Omega^*(z) = \tfrac12 \sum_{j \in S} (z_j^2 - \tau^2)`, whose gradient is sparsemax, of scores whose highest is 0."""
    support = support_of(shifted, dim)
    inside, size = shifted * support, support.sum(dim)
    return (inside.square().sum(dim) - (inside.sum(dim) - 1).square() / size) / 2


@torch.no_grad()
def support_of(shifted: Tensor, dim: int) -> Tensor:
    """Which scores have a probability, where the highest of all is 0."""
    most = max(int((shifted > -1).sum(dim).amax()), 1) if is_readable(shifted) and shifted.numel() else shifted.shape[dim]
    ordered = shifted.topk(most, dim).values
    rank = torch.arange(1, most + 1, device=shifted.device, dtype=shifted.dtype).reshape(-1, *[1] * (shifted.ndim - 1 - dim % shifted.ndim))
    size = (1 + rank * ordered > ordered.cumsum(dim)).sum(dim, keepdim=True).clamp(min=1)  # none, of NaN
    return shifted > (ordered.cumsum(dim).gather(dim, size - 1) - 1) / size


class Sparsemax(nn.Module):
    """Sparsemax as a layer, in the place of ``nn.Softmax`` (attention, gates): see :func:`sparsemax`.

    Args:
        dim: what adds up to 1.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, scores: Tensor) -> Tensor:
        return sparsemax(scores, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class SparsemaxLoss(Loss):
    r"""Sparsemax loss: a margin loss with probabilities, zero once the target leads by 1 and then exactly certain.

    .. math:: \ell = -z_y + \tfrac12 \sum_{j \in S} (z_j^2 - \tau^2) + \tfrac12

    with *S* the classes of probability above 0 and :math:`\tau` sparsemax's threshold. Convex, smooth, never negative; for two classes a Huber loss of
    the margin.

    Try it where most classes should get exactly no probability.

    Args:
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target (N,) or (N, d1, …), class indices.

    Raises:
        ValueError: if shapes disagree or a target lies outside [0, C).

    Source:
        Martins and Astudillo, "From Softmax to Sparsemax: A Sparse Model of Attention and Multi-Label Classification", ICML 2016,
        arXiv:1602.02068, eq. 16.
    """

    def __init__(
        self, *, weight: Tensor | Sequence[float] | None = None, ignore_index: int = IGNORE_INDEX, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        scores = checked_scores(self, logits, target)
        shifted = scores - scores.detach().amax(1, keepdim=True)
        values = 0.5 + conjugate(shifted, 1) - score_of_target(shifted, target, self.ignore_index)
        return self.reduce(values, target).to(logits.dtype)

    def class_logits(self, logits: Tensor) -> Tensor:
        """Logarithms of sparsemax's probabilities, whose softmax these are."""
        return sparsemax(logits.to(at_least_float32(logits.dtype)), 1).clamp(min=1e-30).log()


class MultilabelSparsemaxLoss(Loss):
    r"""Sparsemax loss of several labels a sample: the labels share the probability, and all others get exactly none.

    .. math:: \ell = -\langle q, z \rangle + \tfrac12 \sum_{j \in S} (z_j^2 - \tau^2) + \tfrac12 \lVert q \rVert^2, \qquad q = \frac{y}{\lVert y \rVert_1}

    A sample without labels has no *q*: its loss is 0. A NaN or ``ignore_index`` entry marks an unknown label: the sample is then about its other
    labels, and ignored where it has none. Labels are predicted where their probability exceeds ``threshold``.

    Try it where samples have few of many labels, or where the target is a sample's proportions.

    Args:
        threshold: predicted are labels of more probability than this, in (0, 1); it changes metrics and predictions, not the loss.
        ignore_index: target value that contributes neither value nor gradient (as NaN does).
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample, shape (N,) or (N, d1, …)).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target_multi_hot of the same shape, values >= 0, usually 0 and 1.

    Raises:
        ValueError: if ``threshold`` is outside (0, 1), shapes disagree or a target is outside [0, 1].

    Source:
        Martins and Astudillo, "From Softmax to Sparsemax: A Sparse Model of Attention and Multi-Label Classification", ICML 2016,
        arXiv:1602.02068, eq. 18. The default of ``threshold``, which they tune, is ours.
    """

    def __init__(self, threshold: float = 0.1, *, ignore_index: int = IGNORE_INDEX, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require(0 < threshold < 1, "threshold must be in (0, 1)", threshold)
        self.threshold: float | Tensor = threshold

    def forward(self, logits: Tensor, target_multi_hot: Tensor) -> Tensor:
        check_same_shape("target_multi_hot", target_multi_hot, "logits", logits)
        if logits.ndim < 2:
            raise ValueError(f"logits must have shape (N, C) or (N, C, d1, …), but got {tuple(logits.shape)}")
        known = ~(target_multi_hot.isnan() | (target_multi_hot == self.ignore_index))
        if is_readable(target_multi_hot):
            wrong = known & ((target_multi_hot < 0) | (target_multi_hot > 1))
            if bool(wrong.any()):
                raise ValueError(
                    f"target_multi_hot must hold values in [0, 1], NaN or ignore_index={self.ignore_index}, but got {float(target_multi_hot[wrong][0])}"
                )
        scores = logits.to(at_least_float32(logits.dtype))
        labels = torch.where(known, target_multi_hot.to(scores.dtype), 0.0)
        amount = labels.sum(1, keepdim=True)
        q = labels / torch.where(amount > 0, amount, 1.0)
        # an unknown label takes the place of one so far down that it has no probability and no gradient
        highest = scores.detach().masked_fill(~known, -torch.inf).amax(1, keepdim=True)
        highest = torch.where(highest.isfinite(), highest, 0.0)
        shifted = torch.where(known, scores - highest, -2.0)
        values = conjugate(shifted, 1) + (q * (q / 2 - shifted)).sum(1)
        values = values * (amount > 0).squeeze(1)
        return reduce_values(values, known.any(1).to(values.dtype), self.reduction).to(logits.dtype)

    def class_logits(self, logits: Tensor) -> Tensor:
        """Scores above 0 for the labels that are predicted: the logarithm of probability over ``threshold``."""
        return (sparsemax(logits.to(at_least_float32(logits.dtype)), 1).clamp(min=1e-30) / self.threshold).log()
