r"""Probabilities without an exponential: the spherical family, and stablemax.

A loss is *spherical* if it looks at the scores *o* through three numbers only:

.. math:: q = \sum_k o_k^2, \qquad s = \sum_k o_k, \qquad o_y

Then the loss, its gradient and the update of the output layer cost nothing that grows with the number of classes:
:class:`~components.losses.SphericalOutput` does it. Each spherical loss is written twice here: :meth:`SphericalLoss.forward` from the scores,
where it is exact to the last digits, and :meth:`SphericalLoss.of_sums` from the three numbers.

Taylor, spherical softmax and stablemax are one thing: cross-entropy of a softmax over :math:`\log f(o)` in the place of *o*.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses.base import IGNORE_INDEX, Loss, Reduction, at_least_float32
from components.losses.scores import checked_scores, require_two_classes, score_of_target
from components.validation import require

SMALLEST_DEVIATION = 1e-8


class SphericalLoss(Loss):
    """Base of the losses that :class:`~components.losses.SphericalOutput` can train without touching every class."""

    @abstractmethod
    def of_sums(self, squares: Tensor, total: Tensor, of_target: Tensor, num_classes: int) -> Tensor:
        """(N,) loss of each sample from the sum of its squared scores, the sum of its scores and its target's score, each (N,)."""


class TransformedSoftmaxLoss(Loss):
    """Base: cross-entropy of softmax over transformed scores, :meth:`class_logits`."""

    @abstractmethod
    def class_logits(self, logits: Tensor) -> Tensor:
        """Scores whose softmax is the class probabilities, shaped like ``logits``, float32 or more."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        scores = self.class_logits(checked_scores(self, logits, target))
        values = F.cross_entropy(scores, target, ignore_index=self.ignore_index, reduction="none")
        return self.reduce(values, target).to(logits.dtype)


class ZLoss(SphericalLoss):
    r"""The Z-loss: asks that the target's score stands out by ``b`` standard deviations; for very many classes and top-k ranking.

    .. math:: \ell = \frac{1}{a} \log\left(1 + e^{a (b - z_y)}\right), \qquad z_y = \frac{o_y - \mu}{\sigma}

    with :math:`\mu` and :math:`\sigma` the mean and the (biased) standard deviation of the sample's scores. It does not change when all scores
    are shifted or scaled together. :math:`z_y` is at most :math:`\sqrt{C - 1}`, so ``b`` is to be chosen below it; a larger one suits top-1, a smaller one
    top-k. Not a log-likelihood: compare accuracies and ranks, not perplexities. Another thing than the z-loss of language models, ``next_token``'s
    :math:`(\log Z)^2`.

    Try it where there are thousands of classes: with :class:`~components.losses.SphericalOutput` a step costs the same for any number.

    Args:
        a: sharpness > 0; the smaller, the softer.
        b: margin, in standard deviations.
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw, C >= 2; target (N,) or (N, d1, …), class indices.

    Raises:
        ValueError: if ``a <= 0``, shapes disagree or a target lies outside [0, C).

    Source:
        de Brébisson and Vincent, "The Z-loss: a shift and scale invariant classification loss belonging to the Spherical Family", 2016,
        arXiv:1604.08859. The paper tunes ``a`` and ``b`` for each task; the defaults are ours, and so is the floor of 1e-8 under :math:`\sigma`.
    """

    def __init__(
        self,
        a: float = 1.0,
        b: float = 2.0,
        *,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(a > 0, "a must be > 0", a)
        self.a: float | Tensor = a
        self.b: float | Tensor = b

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        scores = checked_scores(self, logits, target)
        require_two_classes(logits)
        shifted = scores - scores.detach().amax(1, keepdim=True)  # changes nothing but rounding: equal scores become exactly 0
        centred = shifted - shifted.mean(1, keepdim=True)
        z = score_of_target(centred, target, self.ignore_index) / deviation(centred.square().mean(1))
        return self.reduce(self._of_z(z), target).to(logits.dtype)

    def of_sums(self, squares: Tensor, total: Tensor, of_target: Tensor, num_classes: int) -> Tensor:
        mean = total / num_classes
        return self._of_z((of_target - mean) / deviation(squares / num_classes - mean.square()))

    def _of_z(self, z: Tensor) -> Tensor:
        return -F.logsigmoid(self.a * (z - self.b)) / self.a


def deviation(variance: Tensor) -> Tensor:
    """Square root, held off 0."""
    return variance.clamp(min=SMALLEST_DEVIATION**2).sqrt()


class TaylorSoftmaxLoss(SphericalLoss, TransformedSoftmaxLoss):
    r"""Cross-entropy with the Taylor softmax: the exponential's Taylor polynomial, of even order and so never 0, in the exponential's place.

    .. math:: \ell = -\log \frac{f(o_y)}{\sum_k f(o_k)}, \qquad f(o) = \sum_{i=0}^{n} \frac{o^i}{i!}

    Of order 2, :math:`f(o) = 1 + o + o^2/2`, it is spherical. The lowest probability is at :math:`o = -1` (order 2): scores far below it count as
    likely again, so predictions follow :meth:`class_logits`, not the scores.

    Try it for few classes, where it was found as good as softmax or a little better, and as a softmax with a slow tail.

    Args:
        order: *n*, one of 2, 4, 6.
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target (N,) or (N, d1, …), class indices.

    Raises:
        ValueError: if ``order`` is not 2, 4 or 6, shapes disagree or a target lies outside [0, C).

    Source:
        de Brébisson and Vincent, "An Exploration of Softmax Alternatives Belonging to the Spherical Loss Family", ICLR 2016, arXiv:1511.05042; as a
        member of the family in arXiv:1604.08859. Orders above 2 are not spherical.
    """

    def __init__(
        self,
        order: int = 2,
        *,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(order in (2, 4, 6), "order must be 2, 4 or 6", order)
        self.order = order

    def class_logits(self, logits: Tensor) -> Tensor:
        scores = logits.to(at_least_float32(logits.dtype))
        value = torch.ones_like(scores)
        for i in range(self.order, 0, -1):  # Horner
            value = 1 + scores * value / i
        return value.log()

    def of_sums(self, squares: Tensor, total: Tensor, of_target: Tensor, num_classes: int) -> Tensor:
        require(self.order == 2, "order must be 2: the Taylor softmax of another order is not spherical", self.order)
        return (num_classes + total + squares / 2).log() - (1 + of_target + of_target.square() / 2).log()


class SphericalSoftmaxLoss(SphericalLoss, TransformedSoftmaxLoss):
    r"""Cross-entropy with the spherical softmax: probabilities in proportion to squared scores.

    .. math:: \ell = -\log \frac{o_y^2 + \epsilon}{\sum_k (o_k^2 + \epsilon)}

    A score and its negative are the same here; predictions follow :meth:`class_logits`. Where all scores are 0 there is no gradient.

    Try it where scores should only matter relative to each other: scaling all of them changes (nearly) nothing.

    Args:
        epsilon: > 0, holds probabilities off 0.
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target (N,) or (N, d1, …), class indices.

    Raises:
        ValueError: if ``epsilon <= 0``, shapes disagree or a target lies outside [0, C).

    Source:
        de Brébisson and Vincent, "An Exploration of Softmax Alternatives Belonging to the Spherical Loss Family", ICLR 2016, arXiv:1511.05042; Ollivier,
        "Riemannian metrics for neural networks I", 2013, arXiv:1303.0818. The default of ``epsilon`` is ours.
    """

    def __init__(
        self,
        epsilon: float = 1e-3,
        *,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(epsilon > 0, "epsilon must be > 0", epsilon)
        self.epsilon: float | Tensor = epsilon

    def class_logits(self, logits: Tensor) -> Tensor:
        return (logits.to(at_least_float32(logits.dtype)).square() + self.epsilon).log()

    def of_sums(self, squares: Tensor, total: Tensor, of_target: Tensor, num_classes: int) -> Tensor:
        return (squares + num_classes * self.epsilon).log() - (of_target.square() + self.epsilon).log()


class StablemaxLoss(TransformedSoftmaxLoss):
    r"""Cross-entropy with stablemax, which grows like a line where softmax's exponential overflows: for training on after everything is fitted.

    .. math:: \ell = -\log \frac{s(z_y)}{\sum_k s(z_k)}, \qquad s(z) = \begin{cases} z + 1 & z \ge 0 \\ 1 / (1 - z) & z < 0 \end{cases}

    Softmax over :math:`\operatorname{sign}(z) \log(1 + |z|)`, computed so. In float32 softmax's cross-entropy is exactly 0 once the target's score
    leads by about 17 (*softmax collapse*) and learning ends; here the gradient only fades with the square of the lead. Not invariant to a shift of
    all scores.

    Try it where training goes on long after the training set is fitted (grokking), without weight decay or in low precision; beside it
    ``optimizer=orthograd`` and ``metrics=softmax_collapse``.

    Args:
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target (N,) or (N, d1, …), class indices.

    Raises:
        ValueError: if shapes disagree or a target lies outside [0, C).

    Source:
        Prieto, Barsbey, Mediano and Birdal, "Grokking at the Edge of Numerical Stability", ICLR 2025, arXiv:2501.04697, eq. 4–5. The authors compute it
        in float64; logarithms make that needless.
    """

    def __init__(
        self, *, weight: Tensor | Sequence[float] | None = None, ignore_index: int = IGNORE_INDEX, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)

    def class_logits(self, logits: Tensor) -> Tensor:
        scores = logits.to(at_least_float32(logits.dtype))
        sign = (scores >= 0).to(scores.dtype) * 2 - 1  # not abs(), whose derivative at 0 torch takes for 0
        return (sign * scores).log1p() * sign
