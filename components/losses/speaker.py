r"""Speaker verification: an utterance against the centroids of its own and of all other speakers of the batch.

Batches must hold several utterances of each speaker: ``data.samples_per_class=10`` draws them so (:mod:`components.data.samplers`).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from components.losses.base import IGNORE_INDEX, Loss, Reduction, reduce_values
from components.losses.metric_learning import check_labelled_embeddings, dot_products, unit_length
from components.validation import require, require_choice


class GE2ELoss(Loss):
    r"""Generalized end-to-end loss: every sample is nearest to the centroid of its own class, from which it is itself left out.

    .. math:: S_{i,k} = w \cos(e_i, c_k) + b \;(k \ne y_i), \qquad S_{i, y_i} = w \cos\big(e_i, c_{y_i}^{(-i)}\big) + b

              \text{softmax:}\; \ell_i = \log \sum_k e^{S_{i,k}} - S_{i, y_i} \qquad
              \text{contrast:}\; \ell_i = 1 - \sigma(S_{i, y_i}) + \max_{k \ne y_i} \sigma(S_{i,k})

    with *e* the embeddings at length 1, :math:`c_k` the mean of class *k* in the batch and :math:`c^{(-i)}` that mean without sample *i*. *w* > 0 and *b*
    are learnt: *w* is ``scale`` times the exponential of a parameter (the paper clamps it instead), and both get ``gradient_scale`` times their gradient.
    The paper takes the sum over the batch (``reduction="sum"``).

    Try it for verification with batches of many classes and several samples each; ``softmax`` for text-independent, ``contrast`` for text-dependent speech.

    Args:
        kind: ``"softmax"`` | ``"contrast"``.
        scale: where *w* starts, > 0.
        offset: where *b* starts.
        gradient_scale: factor on the gradient of *w* and *b*, >= 0.
        ignore_index: target value of samples that are neither scored nor in a centroid.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        embeddings (N, D), raw; target (N,), class indices. A sample alone in its class, or in a batch of one class, is left out of the mean (it still
        makes a centroid). Memory O(N²).

    Raises:
        ValueError: if ``scale <= 0``, ``gradient_scale < 0``, the kind is unknown or shapes disagree.

    Source:
        Wan et al., "Generalized End-to-End Loss for Speaker Verification", ICASSP 2018, arXiv:1710.10467, eqs. 5–9.
    """

    pairwise: ClassVar[bool] = True

    def __init__(
        self,
        kind: Literal["softmax", "contrast"] = "softmax",
        *,
        scale: float = 10.0,
        offset: float = -5.0,
        gradient_scale: float = 0.01,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require_choice("kind", kind, ("softmax", "contrast"))
        require(scale > 0, "scale must be > 0", scale)
        require(gradient_scale >= 0, "gradient_scale must be >= 0", gradient_scale)
        self.kind = kind
        self.scale: float | Tensor = scale
        self.offset: float | Tensor = offset
        self.gradient_scale: float | Tensor = gradient_scale
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        check_labelled_embeddings(embeddings, target)
        samples = unit_length(embeddings)
        kept = target != self.ignore_index
        same = (target.unsqueeze(0) == target.unsqueeze(1)) & kept.unsqueeze(0) & kept.unsqueeze(1)
        cosines, rest = centroid_cosines(samples, same)
        scores = self.slowed(self.log_scale, samples).exp() * self.scale * cosines + (self.offset + self.slowed(self.shift, samples))
        # one column a class: that of its first sample in the batch, and for the sample's own class the diagonal
        first = ~same.tril(-1).any(1) & kept
        other = first.unsqueeze(0) & ~same
        own = scores.diagonal()
        lowest = torch.finfo(scores.dtype).min / 4
        others = torch.cat([scores.masked_fill(~other, lowest), torch.full_like(own, lowest).unsqueeze(1)], 1)
        values = torch.logaddexp(own, others.logsumexp(1)) - own if self.kind == "softmax" else 1 - own.sigmoid() + others.amax(1).sigmoid()
        return reduce_values(values, (kept & (rest > 0) & other.any(1)).to(values.dtype), self.reduction).to(embeddings.dtype)

    def slowed(self, parameter: Tensor, like: Tensor) -> Tensor:
        """The parameter's value, with ``gradient_scale`` times its gradient."""
        value = parameter.to(like.dtype)
        return value.detach() + self.gradient_scale * (value - value.detach())


def centroid_cosines(samples: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """(N, N) cosine of each sample with the centroid of another's class, on the diagonal with its own class' without itself; (N,) size of the latter."""
    members = same.to(samples.dtype)
    sums = members @ samples
    cosines = dot_products(samples, unit_length(sums))  # a mean points where the sum does
    without = sums - samples
    rest = members.sum(1) - 1
    # a sample alone has no other centroid; any direction will do in its place
    own = (samples * unit_length(torch.where((rest > 0).unsqueeze(1), without, samples))).sum(1)
    return torch.where(torch.eye(len(samples), dtype=torch.bool, device=samples.device), own.unsqueeze(1), cosines), rest
