"""A differential equation as the teacher: its residuals at points, by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from components.data.base import Batch
from components.data.physics import LENGTH, TransportEquation
from components.losses.physics import eulerian_residual, lagrangian_residual
from components.quantities import Quantities, lazy
from components.tasks.base import Task
from components.validation import require


class PhysicsInformedTask(Task):
    r"""Solve a transport equation with a network, without data of its solution.

    How the equation is written follows from how many outputs the loss asks for: one is the state :math:`u(x, t)` in a fixed frame; two are the place
    :math:`X(x_0, t)` of the point that started at :math:`x_0`, and the state :math:`U(x_0, t)` on it. The network's first output then is the way that
    the point has gone, :math:`X - x_0`, which is periodic where X is not (our reading).

    ``target`` is the exact solution and ``prediction`` the model's, at the batch's points; training need not use either. Along characteristics the
    prediction at (x, t) is found by sending ``labels`` evenly spaced labels to time *t* and interpolating between the two that x lies between.

    Args:
        equation: coefficients of a :class:`~components.data.physics.TransportEquation`.
        num_outputs: 1 or 2.
        hard_initial: build the initial values in: :math:`u_0 + t f`, or :math:`x_0 + t f_1` and :math:`u_0 + t f_2`.
        labels: for predictions along characteristics, >= 2.

    Shapes:
        inputs (N, 2), place and time; residual, initial_residual, boundary_residual (N, num_outputs); target and prediction (N, 1).

    Raises:
        ValueError: if the loss asks for another number of outputs.

    Source:
        Mojgani, Balajewicz and Hassanzadeh, "Lagrangian PINNs", 2022, arXiv:2205.02902.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"target", "prediction", "residual", "initial_residual", "boundary_residual", "features"})

    def __init__(
        self, *args: Any, equation: Mapping[str, Any], num_outputs: int, hard_initial: bool = False, labels: int = 128, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        require(num_outputs in (1, 2), "num_outputs must be 1 (a fixed frame) or 2 (along characteristics): take another loss", num_outputs)
        require(labels >= 2, "labels must be >= 2", labels)
        self.equation = TransportEquation(**equation)
        self.num_outputs, self.hard_initial, self.labels = num_outputs, hard_initial, labels

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, **config: Any) -> dict[str, Any]:
        _ = data["equation"]
        return {"num_outputs": outputs_per_target}

    # -- what the network says -----------------------------------------------------------------------------------------
    def fields(self, x: Tensor, t: Tensor) -> Tensor:
        """(N, 1) the state; or (N, 2) place and state of the points that started at x. With the initial values, where they are built in."""
        output = self.run_model(torch.stack([x, t], 1)).output
        scale = t.unsqueeze(1) if self.hard_initial else 1.0
        state = self.equation.initial(x) if self.hard_initial else torch.zeros_like(x)
        start = state.unsqueeze(1) if self.num_outputs == 1 else torch.stack([x, state], 1)
        return start + scale * output

    def flow(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        place, state = self.fields(x, t).unbind(1)
        return place, state

    def initial_fields(self, x: Tensor) -> Tensor:
        """What :meth:`fields` is to be at time 0."""
        state = self.equation.initial(x)
        return state.unsqueeze(1) if self.num_outputs == 1 else torch.stack([x, state], 1)

    # -- quantities --------------------------------------------------------------------------------------------------------
    def quantities(self, batch: Batch) -> Quantities:
        return self.common(
            batch,
            residual=lazy(lambda q: differentiable(self.residual, q["inputs"])),
            initial_residual=lazy(lambda q: self.fields(q["inputs"][:, 0], torch.zeros_like(q["inputs"][:, 1])) - self.initial_fields(q["inputs"][:, 0])),
            boundary_residual=lazy(lambda q: self.boundary_residual(q["inputs"][:, 1])),
            prediction=lazy(lambda q: self.prediction(q["inputs"])),
            features=lazy(lambda q: self.run_model(q["inputs"]).features),
        )

    def residual(self, points: Tensor) -> Tensor:
        x, t = points.unbind(1)
        if self.num_outputs == 2:
            return lagrangian_residual(self.flow, x, t, self.equation.velocity, self.equation.viscosity)
        return eulerian_residual(lambda x, t: self.fields(x, t)[:, 0], x, t, self.equation.velocity, self.equation.viscosity).unsqueeze(1)

    def boundary_residual(self, t: Tensor) -> Tensor:
        """The fields at one end of the domain less those at the other, a turn of the domain accounted for."""
        ends = [self.fields(torch.full_like(t, end), t) for end in (0.0, LENGTH)]
        difference = ends[0] - ends[1]
        if self.num_outputs == 1:
            return difference
        return difference + difference.new_tensor([LENGTH, 0.0])

    def prediction(self, points: Tensor) -> Tensor:
        """(N, 1) the state at places and times."""
        x, t = points.unbind(1)
        if self.num_outputs == 1:
            return self.fields(x, t)
        count = self.labels
        labels = torch.arange(count, dtype=x.dtype, device=x.device) * (LENGTH / count)
        place, state = (values.reshape(-1, count) for values in self.flow(labels.repeat(len(x)), t.repeat_interleave(count)))
        return interpolated_on_circle(x, place, state).unsqueeze(1)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"prediction": self.prediction(batch["inputs"])}


def differentiable(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """``function(points)`` with derivatives at hand, also in a validation, which switches them off; there the result has no graph."""
    if torch.is_grad_enabled():
        return function(points)
    with torch.inference_mode(False), torch.enable_grad():
        return function(points.clone()).detach()


def interpolated_on_circle(x: Tensor, place: Tensor, state: Tensor) -> Tensor:
    """(N,) states at x, linear between the nearest places on either side, of (N, M) places and states; all places modulo the domain's length."""
    place = place.remainder(LENGTH)
    order = place.argsort(1)
    place, state = place.gather(1, order), state.gather(1, order)
    count = place.shape[1]
    right = torch.searchsorted(place.detach().contiguous(), x.remainder(LENGTH).unsqueeze(1))
    left = right - 1
    low = place.gather(1, left % count) - LENGTH * (right == 0)
    high = place.gather(1, right % count) + LENGTH * (right == count)
    share = (x.remainder(LENGTH).unsqueeze(1) - low) / (high - low).clamp(min=1e-12)
    return torch.lerp(state.gather(1, left % count), state.gather(1, right % count), share).squeeze(1)
