r"""Mixup for metric learning: examples that belong to a class only to some degree, made of the batch's own embeddings.

What is mixed are embeddings of length 1, so nothing new goes through the network, and the cosine of an anchor with
:math:`v = \lambda p + (1 - \lambda) n` follows from cosines that are there already:

.. math:: \cos(a, v) = \frac{\lambda\, a \cdot p + (1 - \lambda)\, a \cdot n}{\sqrt{\lambda^2 + (1 - \lambda)^2 + 2 \lambda (1 - \lambda)\, p \cdot n}}
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from components.losses.base import IGNORE_INDEX, Reduction
from components.losses.metric_learning import dot_products
from components.losses.pair_weighting import BinomialDevianceLoss, ContrastiveLoss, LiftedStructureLoss, MultiSimilarityLoss, PairLoss, ProxyAnchorLoss
from components.validation import did_you_mean, require, require_choice

Mixes = Literal["both", "positive_negative", "anchor_negative"]

PAIRS: Mapping[str, tuple[type[PairLoss], Mapping[str, Any]]] = {
    "contrastive": (ContrastiveLoss, {"margin": 0.5, "squared": False}),
    "multi_similarity": (MultiSimilarityLoss, {}),
    "proxy_anchor": (ProxyAnchorLoss, {}),
    "lifted_structure": (LiftedStructureLoss, {"per": "anchor"}),
    "binomial_deviance": (BinomialDevianceLoss, {}),
}
"""The loss of pairs by name, and its settings where they differ from the class' own."""


class MetrixLoss(PairLoss):
    r"""Metrix: a loss of pairs plus the same loss on mixed examples, whose labels are mixed with them.

    .. math:: \ell(a) = \ell_{\text{clean}}(a)
              + w\, \tau\Big(\sigma^+\Big(\sum_{v} y_v\, \rho^+(s(a, v))\Big) + \sigma^-\Big(\sum_{v} (1 - y_v)\, \rho^-(s(a, v))\Big)\Big)

    with :math:`\tau, \sigma, \rho` those of the loss of pairs, :math:`v = \lambda p + (1 - \lambda) n` for every negative *n* of the anchor, label
    :math:`y_v = \lambda` and :math:`\lambda \sim \mathrm{Beta}(2, 2)`, one a step. What is mixed with the negatives is either a positive of the anchor or
    the anchor itself. ``w = 0`` is the loss of pairs itself, and so is the value in evaluation mode.

    Our reading where the paper leaves it open (it mixes at the input, at a layer or at the embedding; this is the last): embeddings are mixed at length 1;
    of the positives the least similar one is taken (the released code takes the first of the batch); the draws of :math:`\lambda` and of the kind are a
    function of ``step``, evenly spread over their distribution, so that a resumed run repeats them; mixed pairs are not mined.

    Try it where classes that training has not seen are what counts: mixed examples fill the space between the classes
    (:func:`components.metrics.utilisation` measures that).

    Args:
        num_classes: number of proxies (from the data); used by ``pairs="proxy_anchor"`` only.
        embedding_dim: size of the embeddings (from the task); used by ``pairs="proxy_anchor"`` only.
        pairs: ``"contrastive"`` (margin 0.5, not squared) | ``"multi_similarity"`` | ``"proxy_anchor"`` | ``"lifted_structure"`` (per anchor) |
            ``"binomial_deviance"``.
        settings: arguments of that loss, e.g. ``{beta: 50}``.
        mixing: *w* >= 0, weight of the mixed loss.
        mixes: ``"both"`` (one or the other, drawn for each step) | ``"positive_negative"`` | ``"anchor_negative"``.
        ignore_index: target value of samples that are in no pair.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        embeddings (N, D), raw; target (N,), class indices; step, optimizer steps so far, int. Memory O(N²) (proxy anchor: O(N² + N C)).

    Raises:
        ValueError: if ``mixing < 0``, a choice or a setting is unknown, or shapes disagree.

    Source:
        Venkataramanan et al., "It Takes Two to Tango: Mixup for Deep Metric Learning", ICLR 2022, arXiv:2106.04990, eqs. 5–10.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        embedding_dim: int | None = None,
        *,
        pairs: str = "contrastive",
        settings: Mapping[str, Any] | None = None,
        mixing: float = 0.4,
        mixes: Mixes = "both",
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require_choice("pairs", pairs, PAIRS)
        require_choice("mixes", mixes, ("both", "positive_negative", "anchor_negative"))
        require(mixing >= 0, "mixing must be >= 0", mixing)
        made, own = PAIRS[pairs]
        arguments = {**own, **(settings or {}), "ignore_index": ignore_index}
        if made is ProxyAnchorLoss:
            require(num_classes is not None and embedding_dim is not None, "pairs='proxy_anchor' needs num_classes and embedding_dim")
            arguments |= {"num_classes": num_classes, "embedding_dim": embedding_dim}
            self.num_classes = num_classes
        known = [name for name in inspect.signature(made).parameters if name != "reduction"]
        for name in arguments:
            require(name in known, f"settings: {pairs} takes {', '.join(known)}{did_you_mean(name, known)}", name)
        self.pairs = made(**arguments)
        self.mixing: float | Tensor = mixing
        self.mixes: Mixes = mixes

    def forward(self, embeddings: Tensor, target: Tensor, step: int) -> Tensor:  # type: ignore[override]  # the draws depend on the step
        samples = self.pairs.checked(embeddings, target)
        kept = (target != self.ignore_index).to(samples.dtype)
        values = self.pairs.clean_values(samples, target, kept)
        if self.training:
            values = values + self.mixing * self.mixed_values(samples, target, kept, *draws(step))
        return self.reduced(values, kept).to(embeddings.dtype)

    def mixed_values(self, samples: Tensor, target: Tensor, kept: Tensor, share: float, kind: float) -> Tensor:
        """(N,) the loss of the mixed examples: ``share`` is λ, ``kind`` in [0, 1) says what is mixed with the negatives."""
        anchors = self.pairs.anchors(samples)
        similarity, among = dot_products(anchors, samples), dot_products(samples, samples)
        positive, negative = self.pairs.masks(target)
        if not len(target):
            return kept
        of_positive = self.mixes == "positive_negative" or (self.mixes == "both" and kind < 0.5)
        if of_positive:
            partner = similarity.masked_fill(~positive, torch.finfo(similarity.dtype).max).argmin(1)
            to_partner, of_partner = similarity.gather(1, partner.unsqueeze(1)), among[partner]
            negative = negative & positive.any(1, keepdim=True)
        else:
            to_partner, of_partner = torch.ones_like(similarity[:, :1]), similarity
        mixed = mixed_similarity(to_partner, similarity, of_partner, share)
        return self.pairs.values(mixed, share * negative.to(mixed.dtype), (1 - share) * negative.to(mixed.dtype), kept)

    def pair_weights(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """Those of the clean loss."""
        return self.pairs.pair_weights(embeddings, target)


def mixed_similarity(first: Tensor, second: Tensor, between: Tensor, share: float) -> Tensor:
    """Cosine with ``share · p + (1 - share) · n``, from the cosines with *p* (``first``), with *n* (``second``) and of *p* with *n*."""
    length = share * share + (1 - share) * (1 - share) + 2 * share * (1 - share) * between
    tiny = torch.finfo(first.dtype).eps  # opposite embeddings in equal parts leave nothing
    return (share * first + (1 - share) * second) / length.clamp(min=tiny).sqrt()


def draws(step: int) -> tuple[float, float]:
    """The step's λ ~ Beta(2, 2) and a uniform number, from a sequence that covers the unit square evenly (Roberts' R2)."""
    uniform, kind = (0.5 + 0.7548776662466927 * step) % 1.0, (0.5 + 0.5698402909980532 * step) % 1.0
    return 0.5 - math.sin(math.asin(1 - 2 * uniform) / 3), kind  # the inverse of 3λ² - 2λ³
