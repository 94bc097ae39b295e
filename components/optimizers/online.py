"""Online learning as optimizers: regret against any sequence of convex losses (implicit FTRL), games (AOG), distributions over arms (log-barrier)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from components.optimizers.base import (
    GradientOptimizer,
    State,
    at_least_float32,
    column,
    dense_gradient,
    evaluate,
    inner,
    project,
    require_bounds,
    require_options,
    scalar_loss,
    total,
    zeros,
)
from components.optimizers.groups import Group
from components.validation import require, require_choice


class ImplicitFTRL(GradientOptimizer):
    r"""Follow the regularized leader whose steps look at more of the loss than its slope, and so forgive learning rates far too large.

    With :math:`\theta_1 = 0` and the regularizer :math:`\frac{\lambda_t}{2} \lVert x - x_0 \rVert^2` around the starting point,

    .. math:: x_t = x_0 + \theta_t / \lambda_t, \qquad \theta_{t+1} = \theta_t - z_t, \qquad \lambda_t \in
              \Big\{\frac1\eta,\ \frac{\sqrt t}{\eta},\ \frac1\eta\sqrt{\textstyle\sum_{s < t} \lVert g_s \rVert^2}\Big\}

    and :math:`z_t` by ``update``:

    - ``linear``: the gradient :math:`g_t`, plain FTRL (lazy gradient descent).
    - ``aprox``: :math:`s\,g_t`, the best for the loss's truncated linear model :math:`\max\{0, \ell_t + \langle g_t, x - x_t\rangle\}`:
      :math:`s = \min\{1, \max\{0, \ell_t + \langle g_t, x_0 + \theta_t / \lambda_{t+1} - x_t\rangle\}\, \lambda_{t+1} / \lVert g_t \rVert^2\}`.
      For losses >= 0; it needs their value, as MoMo does.
    - ``mirror_prox``: the gradient at the point where ``linear`` would go. The closure is evaluated twice.

    For linear models :meth:`step_linear` takes the exact proximal step. Products run over all parameters, each group's with its own ``lr``.

    Args:
        params: parameters, or parameter groups with ``lr`` of their own.
        lr: :math:`\eta` >= 0; default 0.1.
        update: ``aprox`` (default), ``linear`` or ``mirror_prox``.
        regularizer: which :math:`\lambda_t`: ``constant``, ``sqrt`` (default) or ``adagrad``, in the formula's order. Which one the authors'
            experiments took could not be checked.

    A rate of 0 leads back to :math:`x_0`; where a schedule lowers the rate, the iterates contract towards it.

    Raises:
        ValueError: an option out of its range, no loss or closure where one is needed, a sparse or complex gradient.

    Source:
        Chen and Orabona, "Generalized Implicit Follow-The-Regularized-Leader", ICML 2023, arXiv:2306.00201, algorithm 1; the truncated model:
        Asi and Duchi, "Stochastic (Approximate) Proximal Point Methods", 2019, arXiv:1810.05633.
    """

    exact_state = frozenset({"squares"})

    def __init__(self, params: Iterable[Tensor] | Iterable[Group], lr: float = 0.1, update: str = "aprox", regularizer: str = "sqrt") -> None:
        require_options(lr)
        require_choice("update", update, ("aprox", "linear", "mirror_prox"))
        require_choice("regularizer", regularizer, ("sqrt", "constant", "adagrad"))
        super().__init__(params, {"lr": lr, "update": update, "regularizer": regularizer})

    @property
    def steps_by_the_loss(self) -> bool:  # type: ignore[override]
        """Whether the step uses the loss's value: that of ``aprox`` does."""
        return bool(self.param_groups[0]["update"] == "aprox")

    @property
    def evaluates_twice(self) -> bool:
        """Whether the step runs its closure twice: that of ``mirror_prox`` does."""
        return bool(self.param_groups[0]["update"] == "mirror_prox")

    def start(self, group: Group, parameter: Tensor) -> State:
        return {"origin": parameter.detach().clone(), "dual": zeros(parameter)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, loss: Any = None) -> Any:  # type: ignore[override]
        """One step.

        Args:
            closure: computes the loss and its gradients; called once, by ``mirror_prox`` twice.
            loss: the loss value, if the gradients are there already; instead of ``closure``.
        """
        require((closure is None) or (loss is None), "ImplicitFTRL.step takes a closure or a loss, not both")
        if closure is not None:
            loss = evaluate(closure)
        update = self.param_groups[0]["update"]
        value = scalar_loss(self, loss) if update == "aprox" else None
        require(update != "mirror_prox" or closure is not None, "ImplicitFTRL needs the loss of the step twice (mirror_prox): call step(closure)")
        moving = [(group, *each) for group in self.param_groups for each in self.ready(group)]
        if not moving:
            return loss
        gradients = [[dense_gradient(self, p) for p in parameters] for _, _, parameters, _ in moving]
        rates = self.rates(moving, gradients)
        if update == "mirror_prox":
            for (_, _, parameters, states), rate, some in zip(moving, rates, gradients, strict=True):
                place(parameters, states, torch._foreach_sub(column(states, "dual"), some), rate)
            evaluate(closure)  # the gradients there
            gradients = [[dense_gradient(self, p) for p in parameters] for _, _, parameters, _ in moving]
        elif value is not None:
            share = self.share(moving, rates, gradients, value)
            gradients = [list(torch._foreach_mul(some, share.to(some[0].device))) for some in gradients]
        for (_, _, parameters, states), rate, some in zip(moving, rates, gradients, strict=True):
            torch._foreach_sub_(column(states, "dual"), some)
            place(parameters, states, column(states, "dual"), rate)
        return loss

    def rates(self, moving: list[tuple[Group, int, list[Tensor], list[State]]], gradients: list[list[Tensor]]) -> list[Tensor | float]:
        r""":math:`1 / \lambda_{t+1}`: of these parameters, which have made t steps with this one."""
        regularizer = self.param_groups[0]["regularizer"]
        if regularizer == "adagrad":
            first = moving[0][2][0]
            common = self.state[self.param_groups[0]["params"][0]]
            now = total([inner(g, g) for some in gradients for g in some], torch.zeros((), dtype=at_least_float32(first), device=first.device))
            common["squares"] = common["squares"].to(now) + now if "squares" in common else now
            root = common["squares"].sqrt()
            return [torch.where(root > 0, group["lr"] / root, torch.zeros_like(root)) for group, *_ in moving]
        return [group["lr"] / (step + 1) ** 0.5 if regularizer == "sqrt" else group["lr"] for group, step, _, _ in moving]

    @staticmethod
    def share(
        moving: list[tuple[Group, int, list[Tensor], list[State]]], rates: list[Tensor | float], gradients: list[list[Tensor]], loss: Tensor
    ) -> Tensor:
        """aProx's *s*: how much of the gradient is taken."""
        ahead, squares = [], []
        for (_, _, parameters, states), rate, some in zip(moving, rates, gradients, strict=True):
            for p, state, g in zip(parameters, states, some, strict=True):
                ahead.append(inner(g, state["origin"] + state["dual"] * rate - p))
                squares.append(inner(g, g) * rate)
        square = total(squares, loss)
        left = (loss + total(ahead, loss)).clamp(min=0)
        return torch.where(square > 0, left / square, (left > 0).to(square)).clamp(max=1)

    @torch.no_grad()
    def step_linear(self, features: Tensor, target: Tensor | float, loss: str = "square") -> Tensor:
        r"""The exact implicit step for one sample of a linear model whose weights are the only parameter: :math:`\ell(x) = h(\langle a, x\rangle)`.

        :math:`z_t = r a`, where *r* is *h*'s derivative at :math:`x_{t+1}` itself. Returns *r*.

        Args:
            features: *a*, of the parameter's shape.
            target: *y*; of ``hinge`` and ``logistic`` -1 or 1.
            loss: ``square`` (half the square), ``absolute``, ``hinge`` or ``logistic``.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        require(len(parameters) == 1, "step_linear takes one parameter, the model's weights", len(parameters))
        require(parameters[0].shape == features.shape, f"features must have the weights' shape {tuple(parameters[0].shape)}", tuple(features.shape))
        require(self.param_groups[0]["regularizer"] != "adagrad", "step_linear takes regularizer=sqrt or constant: adagrad's needs a gradient")
        before = parameters[0].grad
        parameters[0].grad = torch.zeros_like(parameters[0])
        ((step, _, states),) = self.ready(self.param_groups[0])
        parameters[0].grad = before
        rate = self.rates([(self.param_groups[0], step, parameters, states)], [])[0]
        centre = states[0]["origin"] + states[0]["dual"] * rate
        slope = implicit_slope(loss, inner(features, centre), inner(features, features) * rate, torch.as_tensor(target).to(features))
        states[0]["dual"].sub_(slope * features)
        place(parameters, states, column(states, "dual"), rate)
        return slope


def place(parameters: list[Tensor], states: list[State], duals: Sequence[Tensor], rate: Tensor | float) -> None:
    r""":math:`x = x_0 + \theta / \lambda`, put into the parameters."""
    scaled = torch._foreach_mul(list(duals), rate.to(parameters[0].device) if isinstance(rate, Tensor) else rate)
    torch._foreach_copy_(parameters, torch._foreach_add(column(states, "origin"), scaled))


def implicit_slope(loss: str, score: Tensor, width: Tensor, target: Tensor) -> Tensor:
    r"""The *r* with :math:`r = h'(\text{score} - r\,\text{width})`: the derivative where the step ends.

    Args:
        loss: ``square`` | ``absolute`` | ``hinge`` | ``logistic``.
        score: :math:`\langle a, x\rangle` before the step.
        width: :math:`\lVert a \rVert^2 / \lambda` >= 0.
        target: *y*.
    """
    require_choice("loss", loss, ("square", "absolute", "hinge", "logistic"))
    safe = width.clamp(min=torch.finfo(width.dtype).tiny)
    if loss == "square":
        return (score - target) / (1 + width)
    if loss == "absolute":
        return ((score - target) / safe).clamp(-1, 1)
    margin = target * score
    if loss == "hinge":
        return -target * ((1 - margin) / safe).clamp(0, 1)
    # -y r = sigmoid(-(margin + r width)), r in (0, 1): bisection first, then Newton; a fixed number of each needs no look at the values
    low, high = torch.zeros_like(margin), torch.ones_like(margin)
    for _ in range(30):
        middle = (low + high) / 2
        above = middle > torch.sigmoid(-(margin + middle * width))
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    pull = (low + high) / 2
    for _ in range(3):
        there = torch.sigmoid(-(margin + pull * width))
        pull = (pull - (pull - there) / (1 + width * there * (1 - there))).clamp(0, 1)
    return -target * pull


def linear_loss(loss: str, score: Tensor, target: Tensor) -> Tensor:
    """The losses that :func:`implicit_slope` knows, of a score."""
    require_choice("loss", loss, ("square", "absolute", "hinge", "logistic"))
    if loss == "square":
        return (score - target).square() / 2
    if loss == "absolute":
        return (score - target).abs()
    return (1 - target * score).clamp(min=0) if loss == "hinge" else softplus(-target * score)


class AOG(GradientOptimizer):
    r"""Accelerated optimistic gradient: each player of a smooth monotone game descends its own loss, and all converge at the rate 1/T.

    Past extragradient with a pull to the starting point that fades as :math:`1/(t+1)`. The parameters are the points played,
    :math:`z_{t+1/2}`; with :math:`V` their gradients (each player's of its own loss) and :math:`z_{1/2} = z_1`,

    .. math:: z_{t+1/2} &= \Pi\Big[z_t - \eta V(z_{t-1/2}) + \frac{z_1 - z_t}{t + 1}\Big] \\
              z_{t+1} &= \Pi\Big[z_t - \eta V(z_{t+1/2}) + \frac{z_1 - z_t}{t + 1}\Big]

    One gradient a step: a step ends one round with the gradient of the point played and begins the next. Plain simultaneous descent
    diverges where this converges. The step size is constant: :math:`\eta \le 1/(\sqrt6 L)` for an *L*-Lipschitz *V*. The paper's variant that
    adapts it against adversaries is not built: we could not establish its rule.

    Args:
        params: parameters, or parameter groups (players) with options of their own.
        lr: :math:`\eta` >= 0; default 0.1. A rate of 0 leaves the pull.
        anchor: the pull; without it this is the optimistic gradient method. Default true.
        bounds: (lowest, highest) of every parameter, to which :math:`\Pi` clips; default: none.

    Raises:
        ValueError: an option out of its range, a sparse or complex gradient.

    Source:
        Cai and Zheng, "Doubly Optimal No-Regret Learning in Monotone Games", ICML 2023, arXiv:2301.13120.
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[Group], lr: float = 0.1, anchor: bool = True, bounds: Sequence[float] | None = None
    ) -> None:
        require_options(lr)
        super().__init__(params, {"lr": lr, "anchor": anchor, "bounds": require_bounds(bounds)})

    def start(self, group: Group, parameter: Tensor) -> State:
        return {"anchor": parameter.detach().clone(), "point": parameter.detach().clone()}

    def update(self, group: Group, step: int, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        anchors, points = column(states, "anchor"), column(states, "point")
        if step > 1:  # end round t = step - 1
            self.walk(group, step, anchors, points, gradients)
        torch._foreach_copy_(parameters, points)
        self.walk(group, step + 1, anchors, parameters, gradients)

    @staticmethod
    def walk(group: Group, pull: int, anchors: list[Tensor], points: list[Tensor], gradients: list[Tensor]) -> None:
        r""":math:`\Pi[z - \eta V + (z_1 - z) / \text{pull}]`, in place."""
        if group["anchor"]:
            torch._foreach_lerp_(points, anchors, 1 / pull)
        torch._foreach_add_(points, gradients, alpha=-group["lr"])
        project(points, group["bounds"])


class LogBarrierFTRL(GradientOptimizer):
    r"""A probability distribution over arms that bears any estimate of their losses, however negative: FTRL with the log-barrier.

    A parameter (…, A) holds distributions over its last dimension; its gradient is the estimated loss of each arm (what the gradient of
    :math:`\langle p, \hat\ell\rangle` is). With the sums :math:`\hat L` of the estimates so far,

    .. math:: p = \arg\min_{p \in \Delta} \langle p, \hat L\rangle - \frac1\eta \sum_a \log p_a, \qquad
              p_a = \frac{1}{\eta(\hat L_a + \nu)}, \quad \sum_a p_a = 1

    For what is played: :func:`importance_weighted` makes the estimates of the one arm's loss, :func:`magnitude_reduced` with features.

    Args:
        params: distributions, or parameter groups with ``lr`` of their own. The first step replaces what they are.
        lr: :math:`\eta` > 0; default 0.1.

    Raises:
        ValueError: ``lr`` is not positive, a sparse or complex gradient.

    Source:
        Dai, Luo, Wei and Zimmert, "Refined Regret for Adversarial MDPs with Linear Function Approximation", ICML 2023, arXiv:2301.12942.
    """

    exact_state = frozenset({"losses"})

    def __init__(self, params: Iterable[Tensor] | Iterable[Group], lr: float = 0.1) -> None:
        require(lr > 0, "lr (the learning rate) must be > 0", lr)
        super().__init__(params, {"lr": lr})

    def start(self, group: Group, parameter: Tensor) -> State:
        return {"losses": torch.zeros_like(parameter, dtype=at_least_float32(parameter))}

    def update(self, group: Group, step: int, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        for p, g, state in zip(parameters, gradients, states, strict=True):
            state["losses"] += g
            p.copy_(log_barrier_distribution(state["losses"], group["lr"]))


def log_barrier_distribution(losses: Tensor, lr: float) -> Tensor:
    r"""The minimiser over the simplex of :math:`\langle p, L\rangle - \frac1\eta\sum_a \log p_a`, of (…, A) losses.

    Newton's method for :math:`u = \nu + \min L` from :math:`1/\eta`, below the root of a convex falling function: it climbs there without overshooting.
    """
    above = (losses - losses.amin(-1, keepdim=True)) * lr
    u = torch.ones_like(above[..., :1])  # in units of 1 / lr: the root lies in [1, A]
    for _ in range(40):
        p = 1 / (above + u)
        u = u + (p.sum(-1, keepdim=True) - 1) / p.square().sum(-1, keepdim=True)
    p = 1 / (above + u)
    return p / p.sum(-1, keepdim=True)


def importance_weighted(loss: Tensor, arm: Tensor, probabilities: Tensor) -> Tensor:
    r"""Unbiased losses of all arms from that of the one played: :math:`\hat\ell_a = [a = a_t]\, \ell / p_a`.

    Args:
        loss: of the arm, shape ().
        arm: its index, shape ().
        probabilities: (A,).
    """
    hit = torch.arange(len(probabilities), device=probabilities.device) == arm
    return torch.where(hit, loss / probabilities, torch.zeros_like(probabilities))


def magnitude_reduced(loss: Tensor, arm: Tensor, probabilities: Tensor, features: Tensor, *, horizon: float = 1.0, gamma: float = 0.0) -> Tensor:
    r"""Unbiased losses of all arms, linear in their features, that are never much below zero.

    With :math:`\Sigma = \mathbb E_{k \sim p}[\phi_k \phi_k^\top] + \gamma I`, :math:`u_{a,k} = \phi_a^\top \Sigma^{-1} \phi_k` and *k* the arm played,

    .. math:: \tilde q_a = u_{a,k}\,\ell + H (u_{a,k})_- - H\, \mathbb E_{k \sim p}[(u_{a,k})_-] \;\ge\; -H \sqrt{\phi_a^\top \Sigma^{-1} \phi_a}

    where the plain estimate falls as low as :math:`-H (u_{a,k})_-`.

    Args:
        loss: of the arm, in [0, horizon], shape ().
        arm: its index, shape ().
        probabilities: (A,).
        features: :math:`\phi` (A, d).
        horizon: *H*, the largest loss.
        gamma: of the covariance, >= 0; 0 is unbiased, and needs features that span all d dimensions.
    """
    covariance = features.mT @ (probabilities[:, None] * features)
    covariance = covariance + gamma * torch.eye(features.shape[1], dtype=features.dtype, device=features.device)
    leverage = features @ torch.linalg.solve(covariance, features.mT)
    negative = (-leverage).clamp(min=0)
    return leverage[:, arm] * loss + horizon * (negative[:, arm] - negative @ probabilities)
