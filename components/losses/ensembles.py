r"""Ensembles of losses: another loss at every step, so that the model cannot fit the quirks of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from components.counter_random import normal, uniform
from components.losses.base import IGNORE_INDEX, Loss, Reduction, reduce_values
from components.losses.margins import known_labels, label_weights
from components.validation import require


class EnsLoss(Loss):
    r"""A fresh random calibrated loss of the margin at every step: dropout, for losses.

    A convex loss :math:`\phi` of the margin :math:`m = (2y - 1) z` is classification-calibrated if :math:`\phi'(0) < 0`, and what gradient descent sees
    of it in a batch is its derivative at the batch's margins: any increasing row of negative numbers. So they are drawn. With
    :math:`u_i \sim N(0, 1)` and the inverse Box-Cox transform

    .. math:: d_i = -\min\bigl(1,\; B_\lambda^{-1}(u_i)\bigr), \qquad
              B_\lambda^{-1}(u) = \begin{cases} \max(1 + \lambda u,\, 0)^{1 / \lambda} & \lambda \ne 0 \\ e^u & \lambda = 0 \end{cases}

    the *r*-th smallest margin gets the *r*-th smallest of the :math:`d` (so :math:`\phi` is convex), beyond a margin of 1 divided by it (a tail that
    keeps falling, slowly), and

    .. math:: \ell_i = d_{(r_i)} \tau(m_i) - 10^{-6} m_i, \qquad \tau(m) = \begin{cases} m & m \le 1 \\ 1 + \log m & m > 1 \end{cases}

    whose gradient is that derivative. :math:`\lambda` is ``lam`` for the first ``period`` epochs, then drawn anew from ``lam_range`` every ``period``.

    *The value says nothing about how good the model is*. So in evaluation mode (validation, test) nothing is drawn and the value is
    :math:`\log(1 + e^{-m})`, binary cross-entropy: ``val/loss`` can choose a checkpoint.

    Try it where an overparametrised network overfits two classes. Columns of ``logits`` are ensembles of their own: one score for two classes as in
    the paper, one-vs-rest for more (our extension). Take SGD with momentum and a cosine schedule, as the paper does.

    What is drawn is a function of ``seed``, the number of batches seen (a buffer, so a resumed run goes on with the same numbers) and the epoch; the
    global random state is neither used nor changed. Ignored elements draw nothing. Our reading: the paper's surrogate is
    :math:`g_i m_i` with :math:`g_i` (the tail included) held constant; ours has the same gradient and is the drawn loss's own antiderivative.

    Args:
        lam: :math:`\lambda` to begin with (and always, without epochs); 0 is the log-normal.
        lam_range: where later ones are drawn from, uniformly; the authors' code: [-1, 1] for images and tables, [0, 1] for texts.
        period: epochs from one draw of :math:`\lambda` to the next; 0: it stays ``lam``. The task's ``epoch`` says where training is.
        seed: of all draws.
        weight: per-label weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient (as NaN does).
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample and label, shaped like ``logits``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw, C = 1 for two classes; target_multi_hot of the same shape, values in {0, 1}.

    Raises:
        ValueError: if ``lam_range`` is no range, ``period < 0``, shapes disagree or a target lies outside [0, 1].

    Source:
        Dai, "EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in Classification", 2024, arXiv:2409.00994; the resampling of
        :math:`\lambda` and the tail from the authors' code.
    """

    pairwise = True  # a sample's derivative depends on its rank in the batch

    batches: Tensor

    def __init__(
        self,
        lam: float = 0.0,
        *,
        lam_range: Sequence[float] = (-1.0, 1.0),
        period: int = 10,
        seed: int = 0,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(len(lam_range) == 2 and lam_range[0] <= lam_range[1], "lam_range must be two numbers, the smaller first", list(lam_range))
        require(period >= 0, "period must be >= 0 epochs (0: lam stays)", period)
        self.lam: float | Tensor = lam
        self.lam_range = (float(lam_range[0]), float(lam_range[1]))
        self.period = period
        self.seed = seed
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(self, logits: Tensor, target_multi_hot: Tensor, epoch: int | None = None) -> Tensor:
        positive, kept = known_labels(logits, target_multi_hot, self.ignore_index)
        self.check_weight(logits.shape[1])
        margins = (2 * positive - 1) * logits.to(positive.dtype)
        if self.training:
            values = self.antiderivative(margins, self.derivatives(margins.detach(), kept, self.lam_at(epoch)))
            self.batches.add_(1)
        else:
            values = F.softplus(-margins)
        return reduce_values(values, label_weights(values, kept, self.weight), self.reduction).to(logits.dtype)

    def lam_at(self, epoch: int | None) -> float | Tensor:
        """:math:`\\lambda` of an epoch, counted from 0."""
        if not epoch or not self.period or epoch < self.period:
            return self.lam
        low, high = self.lam_range
        drawn = uniform(torch.full_like(self.batches, self.seed), epoch // self.period, -1)
        return low + (high - low) * drawn

    @torch.no_grad()
    def derivatives(self, margins: Tensor, kept: Tensor | None, lam: float | Tensor) -> Tensor:
        """The drawn loss's derivative at each margin (N, C, d1, …), before the tail and without the 1e-6: increasing with the margin, in [-1, 0]."""
        columns = margins.movedim(1, -1).reshape(-1, margins.shape[1])  # each label's elements
        rows = torch.arange(len(columns), device=margins.device).unsqueeze(1)
        drawn = normal(self.batches + self.seed * 1_000_003, torch.arange(columns.shape[1], device=margins.device), rows, dtype=margins.dtype)
        candidates = -inverse_box_cox(drawn, lam).clamp(max=1)
        if kept is not None:  # what is left of the batch alone would draw the same
            known = kept.movedim(1, -1).reshape(columns.shape)
            candidates = candidates.masked_fill(rows >= known.sum(0), torch.inf)
            columns = columns.masked_fill(~known, torch.inf)
        order = columns.argsort(dim=0, stable=True)
        matched = torch.zeros_like(candidates).scatter(0, order, candidates.sort(0).values.nan_to_num(posinf=0.0))
        return matched.reshape(margins.movedim(1, -1).shape).movedim(-1, 1)

    @staticmethod
    def antiderivative(margins: Tensor, derivatives: Tensor) -> Tensor:
        beyond = margins > 1
        tail = torch.where(beyond, 1 + torch.where(beyond, margins, torch.ones_like(margins)).log(), margins)
        return derivatives * tail - 1e-6 * margins


def inverse_box_cox(values: Tensor, lam: float | Tensor) -> Tensor:
    r""":math:`\max(1 + \lambda x, 0)^{1/\lambda}`, :math:`e^x` for :math:`\lambda = 0`; infinite where the base is not positive and :math:`\lambda < 0`."""
    lam = lam.to(values) if isinstance(lam, Tensor) else values.new_full((), lam)
    near_zero = lam.abs() < 1e-6
    divisor = torch.where(near_zero, torch.ones_like(lam), lam)
    return torch.where(near_zero, values, torch.log1p((divisor * values).clamp(min=-1)) / divisor).exp()
