"""Adam's descendants with a longer memory: of the largest second moment (AMSGrad), of all of them (AdamNC), of old gradients (AdEMAMix)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from components.optimizers.base import GradientOptimizer, State, column, project, require_bounds, require_options, zeros
from components.optimizers.groups import Group
from components.validation import require


class AMSGrad(GradientOptimizer):
    r"""Adam whose second moment never shrinks, so that rare large gradients are not forgotten: it converges where Adam need not.

    .. math:: m_t &= \beta_{1,t} m_{t-1} + (1 - \beta_{1,t}) g_t, \quad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \quad
              \hat v_t = \max(\hat v_{t-1}, v_t) \\
              \theta &\leftarrow \Pi\Big[\theta - \frac{\eta}{t^{p}}\, \frac{m_t}{\sqrt{\hat v_t} + \epsilon}\Big],
              \qquad \beta_{1,t} = \beta_1 \lambda^{t-1}

    The paper corrects no bias; with ``bias_correction`` this is :class:`torch.optim.AdamW` with ``amsgrad=True``.

    Args:
        params: parameters, or parameter groups with options of their own.
        lr: :math:`\eta` >= 0; default 1e-3, torch's (the paper names none).
        betas: :math:`(\beta_1, \beta_2)` in [0, 1); default (0.9, 0.999). The theorem asks for :math:`\beta_1 < \sqrt{\beta_2}`.
        eps: >= 0; default 1e-8.
        weight_decay: decoupled (:math:`\theta \leftarrow (1 - \eta w)\theta` first), >= 0; default 0.
        bias_correction: divide the moments by :math:`1 - \beta^t`, as torch does; default false.
        lr_power: *p* >= 0; the paper's analysis has 0.5. Default 0: leave it to a schedule.
        beta1_decay: :math:`\lambda` in (0, 1]; default 1: constant momentum.
        bounds: (lowest, highest) of every parameter, to which :math:`\Pi` clips; default: none.

    Raises:
        ValueError: an option out of its range, a sparse or complex gradient.

    Source:
        Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond", ICLR 2018, arXiv:1904.09237, algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = False,
        lr_power: float = 0.0,
        beta1_decay: float = 1.0,
        bounds: Sequence[float] | None = None,
    ) -> None:
        require_options(lr, betas, eps, weight_decay)
        require(len(betas) == 2, "betas must be two numbers", list(betas))
        require_series(lr_power, beta1_decay)
        options = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "bias_correction": bias_correction, "lr_power": lr_power}
        super().__init__(params, options | {"beta1_decay": beta1_decay, "bounds": require_bounds(bounds)})

    def start(self, group: Group, parameter: Tensor) -> State:
        return {"exp_avg": zeros(parameter), "exp_avg_sq": zeros(parameter), "max_exp_avg_sq": zeros(parameter)}

    def update(self, group: Group, step: int, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        first, second, largest = (column(states, name) for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
        beta1, beta2 = group["betas"]
        average(first, gradients, beta1 * group["beta1_decay"] ** (step - 1))
        average_squares(second, gradients, beta2)
        torch._foreach_maximum_(largest, second)
        rate = group["lr"] / step ** group["lr_power"]
        decay(parameters, rate * group["weight_decay"])
        corrections = (1 - beta1**step, 1 - beta2**step) if group["bias_correction"] else (1.0, 1.0)
        descend(parameters, first, largest, rate / corrections[0], corrections[1], group["eps"])
        project(parameters, group["bounds"])


class AdamNC(GradientOptimizer):
    r"""Adam whose second moment is the plain mean of all squared gradients so far: :math:`\beta_{2,t} = 1 - 1/t`.

    .. math:: v_t = \frac1t \sum_{s \le t} g_s^2, \qquad
              \theta \leftarrow \Pi\Big[\theta - \frac{\eta}{t^{p}}\, \frac{m_t}{\sqrt{v_t} + \epsilon}\Big], \qquad
              m_t = \beta_{1,t} m_{t-1} + (1 - \beta_{1,t}) g_t

    With :math:`p = 1/2`, :math:`\beta_1 = 0` and :math:`\epsilon = 0` it is Adagrad.

    Args:
        params: parameters, or parameter groups with options of their own.
        lr: :math:`\eta` >= 0; default 1e-3.
        beta1: in [0, 1); default 0.9.
        eps: >= 0; default 1e-8.
        weight_decay: decoupled, >= 0; default 0.
        lr_power: *p* >= 0; default 0.5, the paper's.
        beta1_decay: :math:`\lambda` in (0, 1] of :math:`\beta_{1,t} = \beta_1 \lambda^{t-1}`; default 1.
        bounds: (lowest, highest) of every parameter; default: none.

    Raises:
        ValueError: an option out of its range, a sparse or complex gradient.

    Source:
        Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond", ICLR 2018, arXiv:1904.09237, algorithm 3 and corollary 2.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        beta1: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        lr_power: float = 0.5,
        beta1_decay: float = 1.0,
        bounds: Sequence[float] | None = None,
    ) -> None:
        require_options(lr, (), eps, weight_decay)
        require(0 <= beta1 < 1, "beta1 must be in [0, 1)", beta1)
        require_series(lr_power, beta1_decay)
        options = {"lr": lr, "beta1": beta1, "eps": eps, "weight_decay": weight_decay, "lr_power": lr_power, "beta1_decay": beta1_decay}
        super().__init__(params, options | {"bounds": require_bounds(bounds)})

    def start(self, group: Group, parameter: Tensor) -> State:
        return {"exp_avg": zeros(parameter), "mean_sq": zeros(parameter)}

    def update(self, group: Group, step: int, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        first, second = column(states, "exp_avg"), column(states, "mean_sq")
        average(first, gradients, group["beta1"] * group["beta1_decay"] ** (step - 1))
        average_squares(second, gradients, 1 - 1 / step)
        rate = group["lr"] / step ** group["lr_power"]
        decay(parameters, rate * group["weight_decay"])
        descend(parameters, first, second, rate, 1.0, group["eps"])
        project(parameters, group["bounds"])


class AdEMAMix(GradientOptimizer):
    r"""AdamW with a second, much slower average of the gradients beside the fast one: gradients of ten thousand steps ago still help.

    .. math:: m_1 &= \beta_1 m_1 + (1 - \beta_1) g, \quad m_2 = \beta_3(t)\, m_2 + (1 - \beta_3(t))\, g, \quad v = \beta_2 v + (1 - \beta_2) g^2 \\
              \theta &\leftarrow (1 - \eta w)\theta - \eta\, \frac{m_1 / (1 - \beta_1^t) + \alpha(t)\, m_2}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    :math:`\alpha(t)` grows linearly from 0 and :math:`\beta_3(t)` from :math:`\beta_1` such that its half-life does: see :func:`slow_beta`.
    Without these warm-ups early steps may diverge. It needs long runs: for :math:`10^3` steps take :math:`\beta_3 = 0.99`.
    State: three buffers a parameter, two if :math:`\beta_1 = 0`.

    Args:
        params: parameters, or parameter groups with options of their own.
        lr: :math:`\eta` >= 0; default 1e-3.
        betas: :math:`(\beta_1, \beta_2, \beta_3)` in [0, 1); default (0.9, 0.999, 0.9999).
        alpha: weight of the slow average, >= 0; default 2, the released code's (language models: 4 to 10).
        eps: >= 0; default 1e-8.
        weight_decay: decoupled, >= 0; default 0.
        alpha_warmup: steps until :math:`\alpha(t) = \alpha`; 0: none; default: ``total_steps``.
        beta3_warmup: steps until :math:`\beta_3(t) = \beta_3`; 0: none; default: ``total_steps``.
        total_steps: length of the run, for the two warm-ups; default: none, and then no warm-up.

    Raises:
        ValueError: an option out of its range, a sparse or complex gradient.

    Source:
        Pagliardini, Ablin and Grangier, "The AdEMAMix Optimizer: Better, Faster, Older", ICLR 2025, arXiv:2409.03137, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999, 0.9999),
        alpha: float = 2.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        alpha_warmup: int | None = None,
        beta3_warmup: int | None = None,
        total_steps: int | None = None,
    ) -> None:
        require_options(lr, betas, eps, weight_decay)
        require(len(betas) == 3, "betas must be three numbers: fast, second moment, slow", list(betas))
        require(alpha >= 0, "alpha must be >= 0", alpha)
        horizon = 0 if total_steps is None else total_steps
        warmups = {"alpha_warmup": horizon if alpha_warmup is None else alpha_warmup, "beta3_warmup": horizon if beta3_warmup is None else beta3_warmup}
        for name, steps in warmups.items():
            require(0 <= steps < math.inf, f"{name} must be a finite number of steps >= 0", steps)
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "alpha": alpha, "eps": eps, "weight_decay": weight_decay, **warmups})

    def start(self, group: Group, parameter: Tensor) -> State:
        fast = {"exp_avg": zeros(parameter)} if group["betas"][0] > 0 else {}
        return {**fast, "exp_avg_slow": zeros(parameter), "exp_avg_sq": zeros(parameter)}

    def update(self, group: Group, step: int, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        beta1, beta2, beta3 = group["betas"]
        slow, second = column(states, "exp_avg_slow"), column(states, "exp_avg_sq")
        average(slow, gradients, slow_beta(step, beta1, beta3, group["beta3_warmup"]))
        average_squares(second, gradients, beta2)
        fast = gradients
        if beta1 > 0:
            fast = column(states, "exp_avg")
            average(fast, gradients, beta1)
        # m1 / (1 - b1^t) + alpha m2, as (m1 + alpha (1 - b1^t) m2) / (1 - b1^t): one new tensor each
        correction = 1 - beta1**step
        mixed = torch._foreach_add(fast, slow, alpha=correction * slow_weight(step, group["alpha"], group["alpha_warmup"]))
        decay(parameters, group["lr"] * group["weight_decay"])
        descend(parameters, list(mixed), second, group["lr"] / correction, 1 - beta2**step, group["eps"])


def slow_weight(step: int, alpha: float, warmup: int) -> float:
    r"""AdEMAMix's :math:`\alpha(t) = \min(t/T, 1)\,\alpha`."""
    return alpha * step / warmup if step < warmup else alpha


def slow_beta(step: int, start: float, end: float, warmup: int) -> float:
    r"""AdEMAMix's :math:`\beta_3(t)`: from ``start`` to ``end`` in ``warmup`` steps, its half-life growing linearly.

    .. math:: \ln\beta_3(t) = \Big(\frac{1 - t/T}{\ln\beta_\text{start}} + \frac{t/T}{\ln\beta_3}\Big)^{-1}

    A start of 0 has the half-life 0. If the end is below the start, there is nothing to warm up to: the end.
    """
    if step >= warmup or end <= start:
        return end
    part = step / warmup
    half_life = part / math.log(end) + ((1 - part) / math.log(start) if start > 0 else 0.0)  # in units of ln(1/2), both negative
    return math.exp(1 / half_life) if half_life < 0 else start


def average(averages: list[Tensor], values: list[Tensor], beta: float) -> None:
    torch._foreach_lerp_(averages, values, 1 - beta)


def average_squares(averages: list[Tensor], values: list[Tensor], beta: float) -> None:
    torch._foreach_mul_(averages, beta)
    torch._foreach_addcmul_(averages, values, values, value=1 - beta)


def decay(parameters: list[Tensor], amount: float) -> None:
    if amount != 0:
        torch._foreach_mul_(parameters, 1 - amount)


def descend(parameters: list[Tensor], directions: list[Tensor], second: list[Tensor], rate: float, correction: float, eps: float) -> None:
    r""":math:`\theta \leftarrow \theta - \text{rate}\; d / (\sqrt{v / \text{correction}} + \epsilon)`."""
    roots = list(torch._foreach_sqrt(second))
    if correction != 1:
        torch._foreach_div_(roots, math.sqrt(correction))
    torch._foreach_add_(roots, eps)
    torch._foreach_addcdiv_(parameters, directions, roots, value=-rate)


def require_series(lr_power: float, beta1_decay: float) -> None:
    require(lr_power >= 0, "lr_power must be >= 0", lr_power)
    require(0 < beta1_decay <= 1, "beta1_decay must be in (0, 1]", beta1_decay)
