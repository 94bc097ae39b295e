"""Losses against attacks: what a classifier says is to stay where an attacker near the input moves it.

All of them look for the worst input in a ball by projected gradient ascent (Madry et al., ICLR 2018, arXiv:1706.06083); they differ in what the worst
is, and in what they make of it. An attack is run on the model in evaluation mode, its result in the model's own mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.counter_random import normal
from components.losses.base import IGNORE_INDEX, Loss, Reduction, at_least_float32
from components.losses.comp_sum import comp_sum
from components.losses.scores import checked_scores, divergence, score_of_target
from components.models.base import evaluating, split_output
from components.validation import require, require_choice


class AdversarialLoss(Loss):
    """Base of losses that attack the model they train: the ball, the ascent in it, and checks of what is asked for.

    Args:
        gamma: radius of the ball, >= 0, in units of ``inputs``.
        norm: of the ball: ``linf`` | ``l2``.
        steps: of the ascent, >= 1, each ``gamma / 4`` long.
    """

    dense: ClassVar[bool] = False  # it is where the model is; one that maps (N, …) to (N, C) is not
    exempt: ClassVar = {
        "no_host_sync": "runs the model, which the trial leaves on the CPU",
        "autocast": "runs the model, which the trial has in float64, and autocast casts no float64",
    }

    def __init__(
        self,
        *,
        gamma: float,
        norm: str,
        steps: int,
        weight: Tensor | Sequence[float] | None,
        ignore_index: int,
        reduction: Reduction,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(gamma >= 0, "gamma must be >= 0", gamma)
        require_choice("norm", norm, ("linf", "l2"))
        require(steps >= 1, "steps must be >= 1", steps)
        self.gamma: float | Tensor = gamma
        self.norm = norm
        self.steps = steps

    def checked(self, inputs: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """``logits`` in float32 at least; all three go together."""
        require(inputs.is_floating_point() and inputs.ndim >= 2, "inputs must be real-valued, shape (N, …)", f"{inputs.dtype} {tuple(inputs.shape)}")
        if not len(inputs) == len(logits) == len(target) or logits.shape[2:] != target.shape[1:]:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (inputs, logits, target))
            raise ValueError(f"inputs (N, …), logits (N, C, d1, …) and target (N, d1, …) must go together, but got {shapes}")
        return checked_scores(self, logits, target)

    def attacked(self, model: nn.Module, inputs: Tensor, logits: Tensor) -> Tensor:
        """The model's scores of attacked inputs."""
        scores = split_output(model(inputs)).output
        if scores.shape != logits.shape:
            raise ValueError(f"logits must be shaped like the model's scores of inputs, {tuple(scores.shape)}, but got {tuple(logits.shape)}")
        return scores

    def ascend(self, function: Callable[[Tensor], Tensor], centre: Tensor, x: Tensor) -> Tensor:
        """From ``x``, all steps up ``function``, which adds up over samples, in the ball around ``centre``."""
        for _ in range(self.steps):
            x = centre + self._within(x + self.gamma / 4 * self._direction(function, x) - centre)
        return x.detach()

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


class SmoothAdversarialCompSumLoss(AdversarialLoss):
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
        super().__init__(gamma=gamma, norm=norm, steps=steps, weight=weight, ignore_index=ignore_index, reduction=reduction)
        require(tau >= 0, "tau must be >= 0", tau)
        require(rho > 0, "rho must be > 0", rho)
        require(nu >= 0, "nu must be >= 0", nu)
        self.tau: float | Tensor = tau
        self.rho: float | Tensor = rho
        self.nu: float | Tensor = nu

    def forward(self, model: nn.Module, inputs: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        scores = self.checked(inputs, logits, target)
        clean = F.cross_entropy(scores / self.rho, target, ignore_index=self.ignore_index, reduction="none")
        attacked = self.attacked(model, self.worst_inputs(model, inputs, logits, target), logits)
        values = comp_sum(clean, self.tau) + self.nu * self._distance(attacked.to(scores.dtype), scores, target)
        return self.reduce(values, target).to(logits.dtype)

    def worst_inputs(self, model: nn.Module, inputs: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """Inputs in the ball around ``inputs`` that move the margins far, without gradient."""
        with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
            centre, scores = inputs.detach().clone(), logits.detach().clone().to(at_least_float32(logits.dtype))
            target = target.clone()
            kept = target != self.ignore_index

            def confusion(x: Tensor) -> Tensor:
                return (F.cross_entropy(split_output(model(x)).output, target, ignore_index=self.ignore_index, reduction="none") * kept).sum()

            def distances(x: Tensor) -> Tensor:
                return self._distance(split_output(model(x)).output.to(scores.dtype), scores, target) * kept

            ahead = self.gamma * self._direction(confusion, centre)
            gained = (distances(centre + ahead) - distances(centre - ahead)).unsqueeze(1).flatten(1).sum(1)
            start = centre + torch.where((gained >= 0).reshape(-1, *[1] * (centre.ndim - 1)), ahead, -ahead)
            return self.ascend(lambda x: distances(x).sum(), centre, start)

    def _distance(self, scores: Tensor, others: Tensor, target: Tensor) -> Tensor:
        moved = scores - others
        return torch.linalg.vector_norm(score_of_target(moved, target, self.ignore_index).unsqueeze(1) - moved, dim=1)


class TRADESLoss(AdversarialLoss):
    r"""TRADES: cross-entropy, plus how far an attacker near the input can move the predicted distribution. For robustness against attacks.

    .. math:: \ell = -\log p_y(x) + \beta \max_{\lVert x' - x \rVert_p \le \gamma} \mathrm{KL}\big(p(x) \,\Vert\, p(x')\big)

    The first term wants accuracy, the second predictions that do not change in the ball, right or wrong: :math:`\beta` trades them. The maximum is
    approached by projected gradient ascent from ``inputs`` plus 0.001 times normal noise. Gradients reach the model through both distributions, not
    through *x'*. A step costs ``steps`` + 2 further passes through the model, and one of them, in the model's own mode, counts a batch more in running
    statistics. The noise is a function of ``seed`` and the number of batches seen (a buffer, so a resumed run goes on with the same numbers), the same for
    all samples of a batch, so that none depends on its place there; in evaluation mode it does not go on.

    Try it where an attacker is to be expected, and some accuracy on clean inputs can be given for it.

    Args:
        beta: :math:`\beta` >= 0, weight of the second term (the paper's :math:`1/\lambda`); 0 is cross-entropy.
        gamma: radius of the ball, >= 0, in units of ``inputs`` (the paper's :math:`\epsilon`).
        norm: of the ball: ``linf`` | ``l2``.
        steps: of the ascent, >= 1, each ``gamma / 4`` long.
        seed: of the noise.
        weight: per-class weights, shape (C,), of both terms.
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        model: maps ``inputs`` (N, …), real-valued, to scores shaped like ``logits``; logits (N, C), the model's scores of ``inputs``; target (N,),
        class indices. Where the model gives (N, C, d1, …), so may they.

    Raises:
        ValueError: if an argument is out of its range, ``inputs`` is not real-valued, shapes disagree or a target lies outside [0, C).

    Source:
        Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan, "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019, arXiv:1901.08573,
        eq. 5 and algorithm 1; :math:`\beta` = 6, ten steps and the noise from the authors' code, whose steps for a ball of 0.031 are 0.007 long, which
        clips inputs to [0, 1] and ascends in ``l2`` otherwise.
    """

    batches: Tensor

    def __init__(
        self,
        beta: float = 6.0,
        *,
        gamma: float = 0.031,
        norm: str = "linf",
        steps: int = 10,
        seed: int = 0,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(gamma=gamma, norm=norm, steps=steps, weight=weight, ignore_index=ignore_index, reduction=reduction)
        require(beta >= 0, "beta must be >= 0", beta)
        self.beta: float | Tensor = beta
        self.seed = seed
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(self, model: nn.Module, inputs: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        scores = self.checked(inputs, logits, target)
        clean = F.cross_entropy(scores, target, ignore_index=self.ignore_index, reduction="none")
        attacked = self.attacked(model, self.worst_inputs(model, inputs, target), logits)
        if self.training:
            self.batches.add_(1)
        values = clean + self.beta * divergence(scores, attacked.to(scores.dtype))
        return self.reduce(values, target).to(logits.dtype)

    def worst_inputs(self, model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        """Inputs in the ball around ``inputs`` whose prediction is far from that of ``inputs``, without gradient."""
        with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
            centre, kept = inputs.detach().clone(), target.clone() != self.ignore_index
            with torch.no_grad():
                scores = split_output(model(centre)).output

            def distance(x: Tensor) -> Tensor:
                return (divergence(scores, split_output(model(x)).output) * kept).sum()

            element = torch.arange(centre.shape[1:].numel(), device=centre.device).reshape(centre.shape[1:])
            noise = normal(self.batches + self.seed * 1_000_003, element, dtype=at_least_float32(centre.dtype))
            return self.ascend(distance, centre, (centre + 0.001 * noise).to(centre.dtype))
