"""Steps that look at the loss: its model along the way (MoMo), or how much of it is error (normalised gradient descent)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from components.optimizers.adaptive_moments import average_squares
from components.optimizers.base import (
    GradientOptimizer,
    State,
    at_least_float32,
    column,
    dense_gradient,
    evaluate,
    inner,
    over_ranks,
    require_options,
    scalar_loss,
    total,
    zeros,
)
from components.optimizers.groups import Group
from components.validation import require

LossClosure = Callable[[], Any]


class ModelBased(GradientOptimizer):
    """What MoMo and MoMo-Adam share: averages of the loss, of the gradient and of their inner product, and the step where their model is 0.

    The averages of the loss and the estimated bound are kept with the first parameter's state, in the loss's own precision.
    """

    exact_state = frozenset({"loss_avg", "lower_bound", "grad_dot"})
    steps_by_the_loss: ClassVar[bool] = True

    @torch.no_grad()
    def step(self, closure: LossClosure | None = None, loss: Any = None) -> Any:  # type: ignore[override]
        """One step.

        Args:
            closure: computes the loss and its gradients, once.
            loss: the loss value, if the gradients are there already; instead of ``closure``.
        """
        require((closure is None) or (loss is None), f"{type(self).__name__}.step takes a closure or a loss, not both")
        if closure is not None:
            loss = evaluate(closure)
        first = self.param_groups[0]["params"][0]
        self.follow(scalar_loss(self, loss), self.state[first])
        return loss

    def follow(self, loss: Tensor, common: State) -> None:
        common["rounds"] = rounds = common.get("rounds", 0) + 1
        beta = self.param_groups[0]["betas"][0]
        starts_at_zero = self.param_groups[0]["bias_correction"]
        if "loss_avg" not in common:
            common["loss_avg"] = torch.zeros_like(loss) if starts_at_zero else loss.clone()
        common["loss_avg"].lerp_(loss, 1 - beta)
        correction = 1 - beta**rounds if starts_at_zero else 1.0

        moved: list[tuple[Group, int, list[Tensor], list[State], list[Tensor] | None]] = []
        along, products, norms = [], [], []
        for group in self.param_groups:
            for step, parameters, states in self.ready(group):
                gradients = [dense_gradient(self, p) for p in parameters]
                averages = column(states, "exp_avg")
                if step == 1 and not starts_at_zero:
                    torch._foreach_copy_(averages, gradients)
                torch._foreach_lerp_(averages, gradients, 1 - group["betas"][0])
                now = [inner(p, g) for p, g in zip(parameters, gradients, strict=True)]
                if step == 1 and not starts_at_zero:
                    torch._foreach_copy_(column(states, "grad_dot"), now)
                torch._foreach_lerp_(column(states, "grad_dot"), now, 1 - group["betas"][0])
                products += column(states, "grad_dot")
                along += [inner(p, d) for p, d in zip(parameters, averages, strict=True)]
                self.observe(group, gradients, states)
                directions = self.directions(group, step, states)
                norms += [inner(d, u) for d, u in zip(averages, directions, strict=True)]
                # a CPU computes them a second time sooner than it finds memory for all of them
                moved.append((group, step, parameters, states, None if parameters[0].device.type == "cpu" else directions))
        slope, product, norm = (total(values, loss) for values in (along, products, norms))

        if "lower_bound" not in common:
            common["lower_bound"] = torch.full_like(loss, self.param_groups[0]["lower_bound"])
        lowest, bound, model = self.param_groups[0]["lower_bound"], common["lower_bound"], common["loss_avg"]
        estimates = self.param_groups[0]["estimate_lower_bound"]
        if estimates:
            growth = 1 + self.param_groups[0]["lr"] * self.param_groups[0]["weight_decay"]
            cap = growth * model + slope - growth * product
            reset = (cap / (2 * growth * correction)).clamp(min=lowest)
            bound.copy_(torch.where(cap < growth * correction * bound, reset, bound))

        sizes = [self.size(group, correction, bound, model, slope, product, norm) for group in self.param_groups]
        if estimates:
            bound.copy_(((model + slope - product - sizes[0] * norm / 2) / correction).clamp(min=lowest))
        by_group = {id(group): size for group, size in zip(self.param_groups, sizes, strict=True)}
        for group, step, parameters, states, kept in moved:
            self.walk(group, by_group[id(group)], parameters, self.directions(group, step, states) if kept is None else kept)

    @staticmethod
    def size(group: Group, correction: float, bound: Tensor, model: Tensor, slope: Tensor, product: Tensor, norm: Tensor) -> Tensor:
        """How far the group goes: to where the model reaches the lower bound, but not further than its learning rate."""
        growth = 1 + group["lr"] * group["weight_decay"]
        gap = (growth * (model - correction * bound) + slope - growth * product).clamp(min=0)
        return torch.where(norm > 0, gap / norm, torch.zeros_like(gap)).clamp(max=group["lr"] / correction)

    def observe(self, group: Group, gradients: list[Tensor], states: list[State]) -> None:
        """What the preconditioner gathers of the gradients."""

    def directions(self, group: Group, step: int, states: list[State]) -> list[Tensor]:
        """The averaged gradients, preconditioned."""
        raise NotImplementedError

    def walk(self, group: Group, size: Tensor, parameters: list[Tensor], directions: list[Tensor]) -> None:
        """Go ``size`` along the negative directions, and decay."""
        amount = group["lr"] * group["weight_decay"]
        if amount and not group.get("proximal_decay", True):
            torch._foreach_mul_(parameters, 1 - amount)
        size = size.to(parameters[0].device)
        if size.device.type == "cpu":
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.addcmul_(direction, size, value=-1)
        else:
            torch._foreach_sub_(parameters, torch._foreach_mul(directions, size))
        if amount and group.get("proximal_decay", True):
            torch._foreach_div_(parameters, 1 + amount)


class MoMo(ModelBased):
    r"""SGD with momentum that chooses its step: where the averaged linear models of the loss reach its lower bound, at most ``lr``.

    .. math:: \bar f &= \beta \bar f + (1 - \beta) f, \quad d = \beta d + (1 - \beta) g, \quad \gamma = \beta\gamma + (1 - \beta)\langle g, x\rangle \\
              \tau &= \min\Big\{\frac{\eta}{\rho},\ \frac{\max\{(1 + \eta w)(\bar f - \rho f_*) + \langle d, x\rangle - (1 + \eta w)\gamma,\, 0\}}
              {\lVert d\rVert^2}\Big\}, \qquad x \leftarrow \frac{x - \tau d}{1 + \eta w}

    with *w* the weight decay and :math:`f_*` the lower bound. All inner products run over all parameters together: it is one step
    size for the whole model (each group's own ``lr`` and decay enter it). Without ``bias_correction`` the averages start at the first values
    and :math:`\rho = 1`, otherwise at 0 and :math:`\rho = 1 - \beta^t`.

    It needs the loss of the very gradients: ``step(closure)``, as Lightning calls it, or ``step(loss=loss)``. When gradients are accumulated,
    that must be the loss whose gradient they are (losskit's tasks see to it). Under DDP the ranks' losses are averaged.

    Args:
        params: parameters, or parameter groups with ``lr`` and ``weight_decay`` of their own.
        lr: :math:`\eta` >= 0, the largest step; default 1, the authors'.
        momentum: :math:`\beta` in [0, 1); default 0.9.
        weight_decay: *w* >= 0; default 0.
        lower_bound: :math:`f_*`, what the loss cannot fall below; default 0.
        bias_correction: default false.
        estimate_lower_bound: raise :math:`f_*` from ``lower_bound`` to what the steps have shown (MoMo*; with several groups, by the first
            group's step); default false.

    Raises:
        ValueError: an option out of its range, no loss, a sparse or complex gradient.

    Source:
        Schaipp, Ohana, Eickenberg, Defazio and Gower, "MoMo: Momentum Models for Adaptive Learning Rates", ICML 2024, arXiv:2305.07583,
        algorithms 1 and 2; https://github.com/fabian-sp/MoMo.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        lower_bound: float = 0.0,
        bias_correction: bool = False,
        estimate_lower_bound: bool = False,
    ) -> None:
        require_options(lr, (), 0.0, weight_decay)
        require(0 <= momentum < 1, "momentum must be in [0, 1)", momentum)
        require_lower_bound(lower_bound)
        options = {"lr": lr, "betas": (momentum,), "weight_decay": weight_decay, "lower_bound": lower_bound}
        super().__init__(params, options | {"bias_correction": bias_correction, "estimate_lower_bound": estimate_lower_bound})

    def start(self, group: Group, parameter: Tensor) -> State:
        return {"exp_avg": zeros(parameter), "grad_dot": torch.zeros((), dtype=at_least_float32(parameter), device=parameter.device)}

    def directions(self, group: Group, step: int, states: list[State]) -> list[Tensor]:
        return column(states, "exp_avg")


class MoMoAdam(ModelBased):
    r"""Adam that chooses its step: MoMo in the norm of Adam's preconditioner.

    With *d*, :math:`\bar f`, :math:`\gamma` as in :class:`MoMo` (from 0, :math:`\rho = 1 - \beta_1^t`) and Adam's
    :math:`D = \sqrt{v / (1 - \beta_2^t)} + \epsilon`,

    .. math:: \tau = \min\Big\{\frac{\eta}{\rho},\ \frac{\max\{(1 + \eta w)(\bar f - \rho f_*) + \langle d, x\rangle - (1 + \eta w)\gamma,\, 0\}}
              {\langle d, D^{-1} d\rangle}\Big\}, \qquad x \leftarrow \frac{x - \tau D^{-1} d}{1 + \eta w}

    As long as :math:`\tau = \eta / \rho` it is Adam. For what it needs of the loop see :class:`MoMo`.

    Args:
        params: parameters, or parameter groups with ``lr`` and ``weight_decay`` of their own.
        lr: :math:`\eta` >= 0, the largest step; default 1e-2, the authors'.
        betas: default (0.9, 0.999).
        eps: default 1e-8.
        weight_decay: *w* >= 0; default 0.
        lower_bound: :math:`f_*`; default 0.
        proximal_decay: decay by the division above (default), or as AdamW by :math:`x \leftarrow (1 - \eta w) x` before the step.
        estimate_lower_bound: see :class:`MoMo`; default false.

    Raises:
        ValueError: an option out of its range, no loss, a sparse or complex gradient.

    Source:
        Schaipp, Ohana, Eickenberg, Defazio and Gower, "MoMo: Momentum Models for Adaptive Learning Rates", ICML 2024, arXiv:2305.07583,
        algorithm 3; https://github.com/fabian-sp/MoMo.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-2,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        lower_bound: float = 0.0,
        proximal_decay: bool = True,
        estimate_lower_bound: bool = False,
    ) -> None:
        require_options(lr, betas, eps, weight_decay)
        require(len(betas) == 2, "betas must be two numbers", list(betas))
        require_lower_bound(lower_bound)
        options = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "lower_bound": lower_bound}
        options |= {"proximal_decay": proximal_decay, "estimate_lower_bound": estimate_lower_bound, "bias_correction": True}
        super().__init__(params, options)

    def start(self, group: Group, parameter: Tensor) -> State:
        scalar = torch.zeros((), dtype=at_least_float32(parameter), device=parameter.device)
        return {"exp_avg": zeros(parameter), "exp_avg_sq": zeros(parameter), "grad_dot": scalar}

    def observe(self, group: Group, gradients: list[Tensor], states: list[State]) -> None:
        average_squares(column(states, "exp_avg_sq"), gradients, group["betas"][1])

    def directions(self, group: Group, step: int, states: list[State]) -> list[Tensor]:
        averages, second = column(states, "exp_avg"), column(states, "exp_avg_sq")
        scale, eps = math.sqrt(1 - group["betas"][1] ** step), group["eps"]
        if second[0].device.type != "cpu":
            roots = list(torch._foreach_sqrt(second))
            torch._foreach_div_(roots, scale)
            torch._foreach_add_(roots, eps)
            return list(torch._foreach_div(averages, roots))
        found = self.room(second)
        for average, square, root in zip(averages, second, found, strict=True):
            torch.sqrt(square, out=root).div_(scale).add_(eps)
            torch.div(average, root, out=root)
        return found


class NormalizedGD(GradientOptimizer):
    r"""Gradient descent divided by the mean error weight: a batch perceptron whose speed does not fall with the number of easy samples.

    Of the logistic loss :math:`\ell_i = \log(1 + e^{-m_i})`, :math:`\sigma_i = 1 - e^{-\ell_i}` is the weight with which sample *i* pulls
    (of any cross-entropy: the probability that the model gives to the wrong classes), and

    .. math:: \theta \leftarrow \theta - \gamma\, \frac{\nabla \tfrac1n \sum_i \ell_i}{\tfrac1n \sum_i \sigma_i + \beta}

    moves by a weighted mean of the misclassified samples, however few they are. Full batches and large steps (:math:`\gamma \ge 1`) are meant.

    Give ``step`` a closure that returns the samples' losses without calling ``backward``: the normaliser is then exact, and vanishing losses
    do not underflow. A closure that returns one loss after ``backward`` (as Lightning's) counts as one sample: the normaliser is
    :math:`1 - e^{-\bar\ell}`, never less than the mean of the :math:`\sigma_i`. ``step(loss=…)`` takes the one or the other
    (of which ``backward`` has then been called on the mean).

    Args:
        params: parameters, or parameter groups with ``lr`` of their own.
        lr: :math:`\gamma` >= 0; default 1.
        beta: :math:`\beta` >= 0, which keeps the step small when almost nothing is wrong; default 0, the pure normalisation.

    Raises:
        ValueError: an option out of its range, no loss, a sparse or complex gradient.

    Source:
        Tyurin, "From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large Step Sizes", AAAI 2025,
        arXiv:2412.08424. The role of :math:`\beta` is as we derived it; the paper's own constant could not be checked.
    """

    steps_by_the_loss: ClassVar[bool] = True

    def __init__(self, params: Iterable[Tensor] | Iterable[Group], lr: float = 1.0, beta: float = 0.0) -> None:
        require_options(lr)
        require(beta >= 0, "beta must be >= 0", beta)
        super().__init__(params, {"lr": lr, "beta": beta})

    def start(self, group: Group, parameter: Tensor) -> State:
        return {}

    @torch.no_grad()
    def step(self, closure: LossClosure | None = None, loss: Any = None) -> Any:  # type: ignore[override]
        """One step; see the class for what the closure, or ``loss``, is. Returns the mean loss."""
        require((closure is None) or (loss is None), "NormalizedGD.step takes a closure or a loss, not both")
        if closure is not None:
            loss = evaluate(closure)
        if not isinstance(loss, Tensor) or loss.ndim == 0:
            loss = scalar_loss(self, loss)
        losses = loss.detach().reshape(-1).to(dtype=at_least_float32(loss))
        error = over_ranks(-torch.expm1(-losses.clamp(min=0)).mean())
        if closure is not None and loss.requires_grad and loss.ndim > 0:
            self.zero_grad()
            weight = 1 / (losses.numel() * torch.where(error > 0, error, torch.ones_like(error)))
            loss.backward(weight.to(loss.dtype).expand_as(loss))  # divided here already: what is left of tiny losses is kept
            scale = [torch.where(error > 0, error / (error + group["beta"]), torch.zeros_like(error)) for group in self.param_groups]
        else:
            scale = [torch.where(error > 0, 1 / (error + group["beta"]), torch.zeros_like(error)) for group in self.param_groups]
        for group, factor in zip(self.param_groups, scale, strict=True):
            for _, parameters, _ in self.ready(group):
                gradients = [dense_gradient(self, p) for p in parameters]
                torch._foreach_sub_(parameters, torch._foreach_mul(gradients, (group["lr"] * factor).to(parameters[0].device)))
        return loss.detach().mean()


def require_lower_bound(lower_bound: float) -> None:
    require(math.isfinite(lower_bound), "lower_bound must be a finite number (of a loss without one: estimate_lower_bound)", lower_bound)
