r"""Comp-sum losses: one family from the exponential loss over cross-entropy to the mean absolute error, and its smooth adversarial form.

With :math:`L = -\log p_y` all of them are one function of *L* and :math:`\tau`, :func:`comp_sum`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.losses.base import IGNORE_INDEX, Loss, Reduction
from components.losses.scores import checked_scores, score_of_target
from components.models.base import evaluating, split_output
from components.validation import require, require_choice

SERIES_BELOW = 1e-3
LARGEST_EXPONENT = 60.0


def comp_sum(cross_entropy: Tensor, tau: float | Tensor) -> Tensor:
    r""":math:`\Phi_\tau` of :math:`u = \sum_{k \ne y} e^{h_k - h_y} = e^L - 1` from the cross-entropy *L* >= 0.

    .. math:: \Phi_\tau = \frac{(1 + u)^{1 - \tau} - 1}{1 - \tau} = \frac{e^{(1 - \tau) L} - 1}{1 - \tau}, \qquad \Phi_1 = L

    Beyond an exponent of 60, where float32 would soon overflow, it goes on along its tangent.
    """
    rate = 1 - tau
    limit = LARGEST_EXPONENT / torch.as_tensor(rate, dtype=cross_entropy.dtype).clamp(min=1e-6)
    near = torch.minimum(cross_entropy, limit)
    exponent = rate * near
    small = exponent.abs() < SERIES_BELOW
    x = exponent.masked_fill(small, 1.0)
    series = 1 + exponent / 2 * (1 + exponent / 3 * (1 + exponent / 4))
    ratio = torch.where(small, series, torch.expm1(x) / x)  # (e^x - 1) / x, also where x is 0
    return near * ratio + exponent.exp() * (cross_entropy - near)


class CompSumLoss(Loss):
    r"""The comp-sum family: cross-entropy with a dial for how much badly predicted samples count.

    .. math:: \ell = \frac{p_y^{\tau - 1} - 1}{1 - \tau} \ (\tau \ne 1), \qquad \ell = -\log p_y \ (\tau = 1), \qquad
              \frac{\partial \ell}{\partial z} = p_y^{\tau - 1} (p - \mathbf{1}_y)

    ``tau`` = 0 is the sum-exponential loss, 1 cross-entropy, 1 + *q* generalized cross-entropy :math:`(1 - p_y^q) / q`, 2 the mean absolute error of
    the probabilities :math:`1 - p_y`.

    Try it where labels are wrong: ``tau`` above 1 damps the samples that the model contradicts, at the price of slower learning; below 1 it
    presses on them.

    Args:
        tau: :math:`\tau` >= 0.
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target (N,) or (N, d1, …), class indices.

    Raises:
        ValueError: if ``tau < 0``, shapes disagree or a target lies outside [0, C).

    Source:
        Mao, Mohri and Zhong, "Cross-Entropy Loss Functions: Theoretical Analysis and Applications", ICML 2023, arXiv:2304.07288, sec. 2; ``gce``: Zhang
        and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", NeurIPS 2018, arXiv:1805.07836;
        ``softmax_mae``: Ghosh, Kumar and Sastry, "Robust Loss Functions under Label Noise for Deep Neural Networks", AAAI 2017, arXiv:1712.09482;
        ``sum_exponential``: Weston and Watkins, "Multi-class Support Vector Machines", 1998. Below ``tau = 1`` values beyond about e^60 are
        continued linearly (our reading), so that they stay finite.
    """

    def __init__(
        self,
        tau: float = 1.5,
        *,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(tau >= 0, "tau must be >= 0", tau)
        self.tau: float | Tensor = tau

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        scores = checked_scores(self, logits, target)
        cross_entropy = F.cross_entropy(scores, target, ignore_index=self.ignore_index, reduction="none")
        return self.reduce(comp_sum(cross_entropy, self.tau), target).to(logits.dtype)


class SmoothAdversarialCompSumLoss(Loss):
    r"""Smooth adversarial comp-sum: a comp-sum loss, plus how far an attacker near the input can move the margins. For robustness against attacks.

    With the margins :math:`\Delta(x)_k = h_y(x) - h_k(x)` of the target over each other class,

    .. math:: \ell = \Phi_\tau\Big(\sum_{k \ne y} e^{-\Delta(x)_k / \rho}\Big)
              + \nu \sup_{\lVert x' - x \rVert_p \le \gamma} \lVert \Delta(x') - \Delta(x) \rVert_2

    The supremum is approached by projected gradient ascent, the model in evaluation mode, from the farther of two points: up and down the gradient of
    cross-entropy (at *x* itself the distance has no direction). Gradients reach the model through :math:`\Delta(x')` and :math:`\Delta(x)`, not through *x'*.
    It adds nothing random. A step costs ``steps`` + 4 further passes through the model, and one of them, in the model's own mode, counts a batch more in
    running statistics.

    Try it in the place of TRADES or adversarial training; for the paper's regularised variant add weight decay and ``averaging=ema``.

    Args:
        tau: of :func:`comp_sum`, >= 0; 1 is logistic.
        rho: :math:`\rho` > 0, the margin's scale.
        nu: :math:`\nu` >= 0, weight of the second term; 0 is the comp-sum loss of ``logits / rho``.
        gamma: radius of the ball, >= 0, in units of ``inputs``.
        norm: of the ball: ``linf`` | ``l2``.
        steps: of the ascent, >= 1, each ``gamma / 4`` long.
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        model: maps ``inputs`` (N, …), real-valued, to scores shaped like ``logits``; logits (N, C), the model's scores of ``inputs``; target (N,),
        class indices. Where the model gives (N, C, d1, …), so may they.

    Raises:
        ValueError: if an argument is out of its range, ``inputs`` is not real-valued, shapes disagree or a target lies outside [0, C).

    Source:
        Mao, Mohri and Zhong, "Cross-Entropy Loss Functions: Theoretical Analysis and Applications", ICML 2023, arXiv:2304.07288, sec. 5. There is no
        published code: the defaults of ``rho`` and ``nu``, ten steps of ``gamma / 4`` and where the ascent starts are our reading; inputs are not
        clipped to a range.
    """

    dense: ClassVar[bool] = False  # it is where the model is; one that maps (N, …) to (N, C) is not
    exempt: ClassVar = {
        "no_host_sync": "runs the model, which the trial leaves on the CPU",
        "autocast": "runs the model, which the trial has in float64, and autocast casts no float64",
    }

    def __init__(
        self,
        tau: float = 1.0,
        *,
        rho: float = 1.0,
        nu: float = 1.0,
        gamma: float = 0.031,
        norm: str = "linf",
        steps: int = 10,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(tau >= 0, "tau must be >= 0", tau)
        require(rho > 0, "rho must be > 0", rho)
        require(nu >= 0, "nu must be >= 0", nu)
        require(gamma >= 0, "gamma must be >= 0", gamma)
        require_choice("norm", norm, ("linf", "l2"))
        require(steps >= 1, "steps must be >= 1", steps)
        self.tau: float | Tensor = tau
        self.rho: float | Tensor = rho
        self.nu: float | Tensor = nu
        self.gamma: float | Tensor = gamma
        self.norm = norm
        self.steps = steps

    def forward(self, model: nn.Module, inputs: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        require(inputs.is_floating_point() and inputs.ndim >= 2, "inputs must be real-valued, shape (N, …)", f"{inputs.dtype} {tuple(inputs.shape)}")
        if not len(inputs) == len(logits) == len(target) or logits.shape[2:] != target.shape[1:]:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (inputs, logits, target))
            raise ValueError(f"inputs (N, …), logits (N, C, d1, …) and target (N, d1, …) must go together, but got {shapes}")
        scores = checked_scores(self, logits, target)
        clean = F.cross_entropy(scores / self.rho, target, ignore_index=self.ignore_index, reduction="none")
        attacked = split_output(model(self.worst_inputs(model, inputs, logits, target))).output
        if attacked.shape != logits.shape:
            raise ValueError(f"logits must be shaped like the model's scores of inputs, {tuple(attacked.shape)}, but got {tuple(logits.shape)}")
        values = comp_sum(clean, self.tau) + self.nu * self._distance(attacked.to(scores.dtype), scores, target)
        return self.reduce(values, target).to(logits.dtype)

    def worst_inputs(self, model: nn.Module, inputs: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """Inputs in the ball around ``inputs`` that move the margins far, without gradient."""
        with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
            centre, scores = inputs.detach().clone(), logits.detach().clone().to(torch.promote_types(logits.dtype, torch.float32))
            target = target.clone()
            kept = target != self.ignore_index

            def confusion(x: Tensor) -> Tensor:
                return (F.cross_entropy(split_output(model(x)).output, target, ignore_index=self.ignore_index, reduction="none") * kept).sum()

            def distances(x: Tensor) -> Tensor:
                return self._distance(split_output(model(x)).output.to(scores.dtype), scores, target) * kept

            def distance(x: Tensor) -> Tensor:
                return distances(x).sum()

            ahead = self.gamma * self._direction(confusion, centre)
            gained = (distances(centre + ahead) - distances(centre - ahead)).unsqueeze(1).flatten(1).sum(1)
            x = centre + torch.where((gained >= 0).reshape(-1, *[1] * (centre.ndim - 1)), ahead, -ahead)
            for _ in range(self.steps):
                x = centre + self._within(x + self.gamma / 4 * self._direction(distance, x) - centre)
            return x.detach()

    def _distance(self, scores: Tensor, others: Tensor, target: Tensor) -> Tensor:
        moved = scores - others
        return torch.linalg.vector_norm(score_of_target(moved, target, self.ignore_index).unsqueeze(1) - moved, dim=1)

    def _direction(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Steepest ascent of length 1 in the norm."""
        gradient = torch.func.grad(function)(x)
        if self.norm == "linf":
            return gradient.sign()
        return gradient / self._size(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)

    def _within(self, moved: Tensor) -> Tensor:
        if self.norm == "linf":
            return torch.maximum(torch.minimum(moved, torch.ones_like(moved) * self.gamma), -torch.ones_like(moved) * self.gamma)
        return moved * (self.gamma / self._size(moved).clamp(min=torch.finfo(moved.dtype).tiny)).clamp(max=1)

    @staticmethod
    def _size(moved: Tensor) -> Tensor:
        return torch.linalg.vector_norm(moved, dim=tuple(range(1, moved.ndim)), keepdim=True)
