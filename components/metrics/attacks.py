"""How well a classifier holds where its inputs are moved against it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.metrics.base import Quotient
from components.models.base import evaluating, split_output
from components.validation import require


class AttackedAccuracy(Quotient):
    r"""Accuracy under projected gradient ascent on cross-entropy in a ball around each input (PGD).

    .. math:: x_0' = x, \qquad
              x_{t+1}' = \Pi_{\lVert x' - x \rVert_\infty \le \gamma} \bigl( x_t' + \tfrac{\gamma}{4} \operatorname{sign} \nabla_x \ell(x_t', y) \bigr)

    It starts at the input itself and has nothing random in it; the model is in evaluation mode meanwhile. Each batch costs ``steps`` passes forward and
    back, and one forward. Inputs are not clipped to a range.

    Args:
        gamma: radius of the ball, >= 0, in units of ``inputs``; 0 is the plain accuracy.
        steps: of the ascent, >= 1.

    Shapes:
        model: maps ``inputs`` (N, …), real-valued, to (N, C); target (N,), class indices.

    Raises:
        ValueError: if an argument is out of its range.

    Source:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv:1706.06083 (without its random start).
    """

    higher_is_better = True

    def __init__(self, gamma: float = 0.031, steps: int = 20) -> None:
        super().__init__(whole=True)
        require(gamma >= 0, "gamma must be >= 0", gamma)
        require(steps >= 1, "steps must be >= 1", steps)
        self.gamma, self.steps = gamma, steps

    def update(self, model: nn.Module, inputs: Tensor, target: Tensor) -> None:
        with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
            centre, classes = inputs.detach().clone(), target.detach().clone()
            moved = torch.zeros_like(centre)
            for _ in range(self.steps):
                x = (centre + moved).requires_grad_()
                (gradient,) = torch.autograd.grad(F.cross_entropy(split_output(model(x)).output, classes, reduction="sum"), x)
                moved = (moved + self.gamma / 4 * gradient.sign()).clamp(-self.gamma, self.gamma)
            with torch.no_grad():
                predicted = split_output(model(centre + moved)).output.argmax(1)
        self.add((predicted == classes).sum(), classes.numel())
