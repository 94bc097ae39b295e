r"""Softmax over cosines to learnt class vectors, with a margin on the true class: normface, sphereface, cosface, arcface, magface, UNPG.

One formula carries the chapter. With :math:`\theta_{ij}` the angle between embedding *i* and class vector *j*, the true class' cosine is replaced by

.. math:: \psi(\theta) = \cos(m_1 \theta + m_2) - m_3

and softmax cross-entropy is taken of *s* times the cosines. The names of the field are values of :math:`(m_1, m_2, m_3)`. The class vectors are
parameters of the loss and are optimised with the model's; on classes that training never saw the loss has no value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from components.losses.base import IGNORE_INDEX, Loss, Reduction, check_class_indices
from components.losses.metric_learning import check_labelled_embeddings, dot_products, unit_length
from components.losses.pair_weighting import check_width
from components.validation import require, require_choice

PastPi = Literal["penalty", "monotone", "none"]


class MarginSoftmaxLoss(Loss):
    r"""Cross-entropy of scaled cosines to learnt class vectors, with a margin that the true class has to overcome.

    .. math:: \ell_i = -\log \frac{e^{s\,\psi(\theta_{iy})}}{e^{s\,\psi(\theta_{iy})} + \sum_{j \ne y} e^{s \cos\theta_{ij}}} + \lambda_g\, g(a_i),
              \qquad \psi(\theta) = \cos(m_1 \theta + m_2(a_i)) - m_3

    Options: ``normface`` (:math:`m = (1, 0, 0)`), ``sphereface`` (:math:`m_1 = 4`, scaled by the embedding's length), ``cosface`` (:math:`m_3 = 0.35`),
    ``arcface`` (:math:`m_2 = 0.5`), and ``magface``, where the margin grows with the embedding's length :math:`a_i`, held in :math:`[l_a, u_a]`:

    .. math:: m_2(a) = m_2 + \Delta\, \frac{a - l_a}{u_a - l_a}, \qquad g(a) = \frac1a + \frac{a}{u_a^2}

    so that good samples become long ones and length tells quality. Without a margin no loss below :meth:`smallest_loss` can be reached, which a small
    *s* leaves far from 0.

    Try it where there are many classes with few samples each and what counts is embeddings of classes that come later (faces, products): no pairs to
    sample or to mine. A margin too large for the data does not train: start from ``normface``.

    Args:
        num_classes: number of class vectors (from the data).
        embedding_dim: size of the embeddings (from the task).
        scale: *s* > 0, the inverse temperature.
        angle_factor: :math:`m_1` >= 1.
        angle_margin: :math:`m_2` >= 0, in radians.
        cosine_margin: :math:`m_3` >= 0.
        past_pi: what :math:`\psi` does where :math:`m_1 \theta + m_2 > \pi`, and the cosine would rise again: ``"penalty"`` (arcface's:
            :math:`\cos\theta - m_2 \sin m_2`) | ``"monotone"`` (sphereface's: :math:`(-1)^k \cos(\cdot) - 2k`) | ``"none"`` (UNPG's and magface's: it rises).
        scale_by_length: multiply *s* by the embedding's length (sphereface).
        learn_scale: *s* becomes ``scale`` times the exponential of a learnt number that starts at 0.
        length_margin: :math:`\Delta` >= 0, how much larger the margin is at the greatest length (magface).
        length_penalty: :math:`\lambda_g` >= 0, weight of *g* (magface).
        shortest: :math:`l_a` > 0: shorter embeddings count as that long (magface).
        longest: :math:`u_a` > :math:`l_a`: longer ones count as that long (magface).
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        embeddings (N, embedding_dim), raw; target (N,), class indices in [0, num_classes). Memory O(N · num_classes).

    Raises:
        ValueError: if an argument is outside its range, shapes disagree or a target lies outside [0, num_classes).

    Source:
        Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019, arXiv:1801.07698, eq. 4 (the three margins at once);
        Wang et al., "NormFace: L2 Hypersphere Embedding for Face Verification", ACM MM 2017, arXiv:1704.06369; Liu et al., "SphereFace", CVPR 2017,
        arXiv:1704.08063; Wang et al., "CosFace", CVPR 2018, arXiv:1801.09414; Meng et al., "MagFace", CVPR 2021, arXiv:2103.06627.
    """

    class_vectors: nn.Parameter

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        scale: float = 64.0,
        angle_factor: float = 1.0,
        angle_margin: float = 0.5,
        cosine_margin: float = 0.0,
        past_pi: PastPi = "penalty",
        scale_by_length: bool = False,
        learn_scale: bool = False,
        length_margin: float = 0.0,
        length_penalty: float = 0.0,
        shortest: float = 10.0,
        longest: float = 110.0,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(num_classes >= 2, "num_classes must be >= 2", num_classes)
        require(scale > 0, "scale must be > 0", scale)
        require(angle_factor >= 1, "angle_factor must be >= 1", angle_factor)
        at_least_0 = {"angle_margin": angle_margin, "cosine_margin": cosine_margin, "length_margin": length_margin, "length_penalty": length_penalty}
        for name, value in at_least_0.items():
            require(value >= 0, f"{name} must be >= 0", value)
        require_choice("past_pi", past_pi, ("penalty", "monotone", "none"))
        require(0 < shortest < longest, "shortest must be > 0 and smaller than longest", (shortest, longest))
        self.check_weight(num_classes)
        self.num_classes = num_classes
        self.scale: float | Tensor = scale
        self.angle_factor: float | Tensor = angle_factor
        self.angle_margin: float | Tensor = angle_margin
        self.cosine_margin: float | Tensor = cosine_margin
        self.length_margin: float | Tensor = length_margin
        self.length_penalty: float | Tensor = length_penalty
        self.shortest: float | Tensor = shortest
        self.longest: float | Tensor = longest
        self.past_pi: PastPi = past_pi
        self.scale_by_length = scale_by_length
        self.class_vectors = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.xavier_uniform_(self.class_vectors)
        self.log_scale = nn.Parameter(torch.zeros(())) if learn_scale else None

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        check_labelled_embeddings(embeddings, target)
        check_width(embeddings, self.class_vectors)
        check_class_indices(target, embeddings.shape[:1], self.num_classes, self.ignore_index)
        self.check_weight(self.num_classes)
        target_or_0 = target.masked_fill(target == self.ignore_index, 0)
        samples = unit_length(embeddings)
        length = self.held_length(embeddings.to(samples.dtype).norm(dim=1))
        cosines = dot_products(samples, unit_length(self.class_vectors.to(samples.dtype)))
        own = self.with_margin(cosines.gather(1, target_or_0.unsqueeze(1)).squeeze(1), length)
        scale = self.scale_of(embeddings.to(samples.dtype))
        scores = scale * cosines.scatter(1, target_or_0.unsqueeze(1), own.unsqueeze(1))
        normaliser = self.with_more_negatives(scores.logsumexp(1), scale, samples, target)
        values = normaliser - scores.gather(1, target_or_0.unsqueeze(1)).squeeze(1)
        values = values + self.length_penalty * (1 / length + length / (self.longest * self.longest))
        return self.reduce(values, target).to(embeddings.dtype)

    def with_margin(self, cosine: Tensor, length: Tensor) -> Tensor:
        r""":math:`\psi` of the true class' cosine, (N,)."""
        # held off ±1, where the angle's slope is infinite; only the change that the margin makes goes through the angle
        held = cosine.clamp(-1 + 1e-7, 1 - 1e-7)
        angle = held.acos()
        margin = self.angle_margin + self.length_margin * (length - self.shortest) / (self.longest - self.shortest)
        turned = self.angle_factor * angle + margin
        changed = turned.cos()
        if self.past_pi == "monotone":
            half_turns = (turned.detach() / math.pi).floor()
            changed = (1 - 2 * half_turns.remainder(2)) * changed - 2 * half_turns
        elif self.past_pi == "penalty":
            changed = torch.where(turned <= math.pi, changed, held - margin * _sine(margin))
        return cosine + (changed - held) - self.cosine_margin

    def held_length(self, length: Tensor) -> Tensor:
        """Lengths held between ``shortest`` and ``longest``, (N,)."""
        above = (length - self.shortest).relu() + self.shortest
        return self.longest - (self.longest - above).relu()

    def scale_of(self, embeddings: Tensor) -> Tensor | float:
        """*s*: one for all, or (N, 1) where it follows the embedding's length."""
        scale: Tensor | float = self.scale if self.log_scale is None else self.scale * self.log_scale.exp().to(embeddings.dtype)
        return scale * embeddings.norm(dim=1, keepdim=True) if self.scale_by_length else scale

    def with_more_negatives(self, normaliser: Tensor, scale: Tensor | float, samples: Tensor, target: Tensor) -> Tensor:
        """The log of the softmax's denominator, (N,), after what a subclass adds to it."""
        return normaliser

    @torch.no_grad()
    def predict(self, embeddings: Tensor) -> Tensor:
        """(N,) the training class of the nearest class vector; scores nothing."""
        samples = unit_length(embeddings)
        return dot_products(samples, unit_length(self.class_vectors.to(samples.dtype))).argmax(1)

    @staticmethod
    def smallest_loss(scale: float, num_classes: int) -> float:
        r""":math:`\log(1 + (C - 1)\, e^{-s C / (C - 1)})`: without a margin the mean loss is never below it (class vectors on a regular simplex)."""
        return math.log1p((num_classes - 1) * math.exp(-scale * num_classes / (num_classes - 1)))


def _sine(angle: Tensor | float) -> Tensor | float:
    return angle.sin() if isinstance(angle, Tensor) else math.sin(angle)


class UNPGLoss(MarginSoftmaxLoss):
    r"""Unified negative pairs: the margin softmax whose denominator also holds the similarities of the batch's pairs of different classes.

    .. math:: \ell_i = -\log \frac{e^{s\,\psi(\theta_{iy})}}{e^{s\,\psi(\theta_{iy})} + \sum_{j \ne y} e^{s \cos\theta_{ij}} + \sum_{u \in S'} e^{s u}}, \qquad
              S' = \{u \in S : Q_1 - r\,(Q_3 - Q_1) \le u \le Q_3 + r\,(Q_3 - Q_1)\}

    *S* holds the cosine of each pair of samples of different classes once, *S'* what a box-and-whisker filter leaves of it (what lies far above is likely
    a wrong label, what lies far below teaches nothing); every anchor gets the same ones. The filter itself has no gradient. Without such pairs it is
    :class:`MarginSoftmaxLoss`.

    Try it on top of a margin softmax with large batches, where the largest similarity between classes should fall below the smallest within.

    Args:
        num_classes: number of class vectors (from the data).
        embedding_dim: size of the embeddings (from the task).
        whisker: *r* >= 0; infinity keeps all pairs.
        scale: *s* > 0.
        angle_factor: see :class:`MarginSoftmaxLoss`, as all that follow.
        angle_margin: the released 0.5.
        cosine_margin: for UNPG on cosface: ``angle_margin=0 cosine_margin=0.35`` (its configuration says 0.5).
        past_pi: the release lets the cosine rise again past π.
        scale_by_length: see :class:`MarginSoftmaxLoss`.
        learn_scale: see :class:`MarginSoftmaxLoss`.
        length_margin: for UNPG on magface.
        length_penalty: for UNPG on magface.
        shortest: see :class:`MarginSoftmaxLoss`.
        longest: see :class:`MarginSoftmaxLoss`.
        weight: per-class weights, shape (C,).
        ignore_index: target value of samples that are neither scored nor in a pair.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        embeddings (N, embedding_dim), raw; target (N,), class indices. Memory O(N · (N + num_classes)).

    Raises:
        ValueError: if an argument is outside its range, shapes disagree or a target lies outside [0, num_classes).

    Source:
        Jung et al., "Unified Negative Pair Generation toward Well-discriminative Feature Space for Face Recognition", BMVC 2022, arXiv:2203.11593.
    """

    pairwise: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        whisker: float = 1.5,
        scale: float = 64.0,
        angle_factor: float = 1.0,
        angle_margin: float = 0.5,
        cosine_margin: float = 0.0,
        past_pi: PastPi = "none",
        scale_by_length: bool = False,
        learn_scale: bool = False,
        length_margin: float = 0.0,
        length_penalty: float = 0.0,
        shortest: float = 10.0,
        longest: float = 110.0,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            num_classes,
            embedding_dim,
            scale=scale,
            angle_factor=angle_factor,
            angle_margin=angle_margin,
            cosine_margin=cosine_margin,
            past_pi=past_pi,
            scale_by_length=scale_by_length,
            learn_scale=learn_scale,
            length_margin=length_margin,
            length_penalty=length_penalty,
            shortest=shortest,
            longest=longest,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
        )
        require(whisker >= 0, "whisker must be >= 0", whisker)
        self.whisker: float | Tensor = whisker

    def with_more_negatives(self, normaliser: Tensor, scale: Tensor | float, samples: Tensor, target: Tensor) -> Tensor:
        kept = target != self.ignore_index
        first, second = torch.triu_indices(len(target), len(target), 1, device=target.device).unbind()
        similarity = dot_products(samples, samples)[first, second]
        inside = box_and_whisker(similarity, (target[first] != target[second]) & kept[first] & kept[second], self.whisker)
        lowest = torch.finfo(similarity.dtype).min / 4
        if isinstance(scale, Tensor) and scale.ndim == 2:  # (N, 1): every anchor weighs the same pairs by its own scale
            similarity, inside = similarity.unsqueeze(0), inside.unsqueeze(0)
        negatives = torch.where(inside, scale * similarity, lowest)
        nothing = negatives.new_full((*negatives.shape[:-1], 1), lowest)
        more = torch.cat([negatives, nothing], -1).logsumexp(-1)
        return torch.logaddexp(normaliser, more.expand_as(normaliser))


def box_and_whisker(values: Tensor, mask: Tensor, whisker: float | Tensor) -> Tensor:
    """Which masked entries of ``values`` (M,) lie within ``whisker`` interquartile ranges of the masked entries' quartiles.

    The quartiles are the entries at the places ⌊l/4⌋ and ⌊3l/4⌋ of the *l* sorted ones.
    """
    if not len(values):
        return mask
    ordered = values.detach().masked_fill(~mask, torch.finfo(values.dtype).max).sort().values
    count = mask.sum()
    low, high = (ordered.gather(0, (quarters * count // 4).clamp(max=len(values) - 1).unsqueeze(0)) for quarters in (1, 3))
    reach = (whisker * (high - low)).nan_to_num(nan=torch.inf)  # infinitely many ranges of 0 are infinite, too
    return mask & (values.detach() >= low - reach) & (values.detach() <= high + reach)
