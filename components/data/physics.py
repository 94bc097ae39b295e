"""Points of a differential equation whose exact solution is known."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from components.data.arrays import Samples
from components.data.base import Split
from components.data.synthetic import Synthetic
from components.validation import require

LENGTH = 2 * math.pi


@dataclass(frozen=True)
class TransportEquation:
    r""":math:`u_t + c\,u_x = \nu\,u_{xx}` on a periodic domain of length :math:`2\pi`, from :math:`u_0 = a \sin(k x)`; c is a number or, for Burgers, u itself.

    The exact solutions: :math:`a\,e^{-\nu k^2 t} \sin(k (x - c t))`; for inviscid Burgers :math:`u_0` of the place that the characteristic
    through (x, t) started at, until characteristics cross.

    Args:
        speed: c; of no meaning for Burgers.
        viscosity: :math:`\nu \ge 0`; 0 for Burgers.
        burgers: the state is its own speed.
        wavenumber, amplitude: k and a, > 0.
        duration: t is in [0, duration].

    Raises:
        ValueError: an argument out of its range; Burgers with viscosity or beyond its shock.
    """

    speed: float = 30.0
    viscosity: float = 0.0
    burgers: bool = False
    wavenumber: int = 1
    amplitude: float = 1.0
    duration: float = 1.0

    def __post_init__(self) -> None:
        require(self.viscosity >= 0, "viscosity must be >= 0", self.viscosity)
        require(self.wavenumber >= 1, "wavenumber must be >= 1", self.wavenumber)
        require(self.amplitude > 0, "amplitude must be > 0", self.amplitude)
        require(self.duration > 0, "duration must be > 0", self.duration)
        if self.burgers:
            require(self.viscosity == 0, "viscosity must be 0 for burgers (its solution is known without)", self.viscosity)
            shock = self.duration * self.amplitude * self.wavenumber
            require(shock < 1, "duration x amplitude x wavenumber must be < 1 for burgers, or characteristics cross", shock)

    def initial(self, x: Tensor) -> Tensor:
        return self.amplitude * torch.sin(self.wavenumber * x)

    def velocity(self, state: Tensor) -> Tensor:
        return state if self.burgers else torch.full_like(state, self.speed)

    def exact(self, x: Tensor, t: Tensor) -> Tensor:
        if not self.burgers:
            return torch.exp(-self.viscosity * self.wavenumber**2 * t) * self.initial(x - self.speed * t)
        low, high = x - self.amplitude * t, x + self.amplitude * t
        for _ in range(60):  # where it started is between these, and place grows with start
            middle = (low + high) / 2
            beyond = middle + t * self.initial(middle) > x
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        return self.initial((low + high) / 2)


class Convection(Synthetic):
    r"""Points of the convection (-diffusion) or Burgers equation, to train a physics-informed model at; the target is the exact solution.

    Inputs are place in :math:`[0, 2\pi)` and time in [0, duration], drawn uniformly, in their own units. ``task=physics_informed`` never trains on the
    target: it is what ``rel_l2`` is measured against.

    Args:
        size: points, over all splits.
        speed, viscosity, burgers, wavenumber, amplitude, duration: see :class:`TransportEquation`.
        **common: see :class:`~components.data.base.DataModule`.

    Source:
        The setting of Mojgani, Balajewicz and Hassanzadeh, "Lagrangian PINNs", 2022, arXiv:2205.02902; Krishnapriyan et al.,
        "Characterizing possible failure modes in physics-informed neural networks", NeurIPS 2021, arXiv:2109.01050.
    """

    def __init__(
        self,
        *,
        size: int = 2000,
        speed: float = 30.0,
        viscosity: float = 0.0,
        burgers: bool = False,
        wavenumber: int = 1,
        amplitude: float = 1.0,
        duration: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(size=size, standardise=False, standardise_target=False, **common)
        self.equation = TransportEquation(float(speed), float(viscosity), burgers, wavenumber, float(amplitude), float(duration))

    def read(self) -> Samples:
        points = torch.rand(self.total, 2, generator=self.generator(), dtype=torch.float64)
        points = points * torch.tensor([LENGTH, self.equation.duration], dtype=torch.float64)
        return Samples(points.float(), self.equation.exact(points[:, 0], points[:, 1]).unsqueeze(1), "real", [])

    def target_facts(self, train: Split) -> dict[str, Any]:
        return super().target_facts(train) | {"equation": asdict(self.equation)}
