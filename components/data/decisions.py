"""Synthetic sets for decisions: a class that is rare everywhere, and customers who leave and differ in what they are worth."""

from __future__ import annotations

import math
from typing import Any

import torch

from components.data.arrays import Samples
from components.data.base import Split
from components.data.synthetic import Synthetic
from components.validation import require


class RareClass(Synthetic):
    r"""Two Gaussians with identity covariance, one of them rare: in training, validation and test alike (``imbalance`` changes training alone).

    .. math:: x \sim N(0, I) \text{ (common)}, \qquad x \sim N(\text{separation} \cdot u, I) \text{ (rare)}, \quad u = (1, \dots, 1) / \sqrt{D}

    The best decision for F1 or balanced accuracy calls many more samples rare than the likeliest class does.

    Args:
        size: samples, over all splits.
        share: of the rare class, in (0, 0.5].
        dimensions: *D*, of the inputs.
        separation: distance of the means, in standard deviations, >= 0.
        **common: see :class:`~components.data.synthetic.Synthetic`.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, *, size: int = 3000, share: float = 0.05, dimensions: int = 10, separation: float = 2.5, **common: Any) -> None:
        super().__init__(size=size, **common)
        require(0 < share <= 0.5, "share must be in (0, 0.5]", share)
        require(round(share * size) >= 4, "share must leave 4 samples of the rare class", share)
        require(dimensions >= 1, "dimensions must be >= 1", dimensions)
        require(separation >= 0, "separation must be >= 0", separation)
        self.share, self.dimensions, self.separation = share, dimensions, separation

    def read(self) -> Samples:
        target = (torch.arange(self.total) < round(self.share * self.total)).long()
        points = torch.randn(self.total, self.dimensions, generator=self.generator())
        return Samples(points + target.unsqueeze(1) * self.separation / math.sqrt(self.dimensions), target, "multiclass", ["common", "rare"])


class Churn(Synthetic):
    r"""Customers of whom a share leaves, with what each is worth: worth can be told from the features, and has nothing to do with leaving.

    .. math:: \text{leaves} = \bigl[ \text{signal} \cdot a^\top x + \varepsilon > q \bigr], \qquad
              \mathrm{CLV} = \text{median} \cdot e^{\text{spread}\,(\rho\, b^\top x + \sqrt{1 - \rho^2}\, \eta)}

    with :math:`x \sim N(0, I)`, orthogonal unit vectors *a* and *b*, logistic :math:`\varepsilon`, Gaussian :math:`\eta`, and *q* such that the share is met.
    Batches hold ``lifetime_value`` (N,), in money.

    Args:
        size: customers, over all splits.
        dimensions: of the features, >= 2.
        share: of the customers, who leave, in (0, 1).
        signal: how well leaving can be told, >= 0.
        median: of the lifetime values, > 0.
        spread: of their logarithm, its standard deviation, >= 0.
        predictable: :math:`\rho`, how well worth can be told, in [0, 1].
        **common: see :class:`~components.data.synthetic.Synthetic`.

    Raises:
        ValueError: an argument out of its range.

    Source:
        The setting is that of Gómez-Vargas et al., EJOR 2025, arXiv:2310.07047, whose data are not public.
    """

    def __init__(
        self,
        *,
        size: int = 4000,
        dimensions: int = 10,
        share: float = 0.2,
        signal: float = 1.5,
        median: float = 100.0,
        spread: float = 1.0,
        predictable: float = 0.9,
        **common: Any,
    ) -> None:
        super().__init__(size=size, **common)
        require(dimensions >= 2, "dimensions must be >= 2", dimensions)
        require(0 < share < 1, "share must be in (0, 1)", share)
        require(signal >= 0, "signal must be >= 0", signal)
        require(median > 0, "median must be > 0", median)
        require(spread >= 0, "spread must be >= 0", spread)
        require(0 <= predictable <= 1, "predictable must be in [0, 1]", predictable)
        self.dimensions, self.share, self.signal = dimensions, share, signal
        self.median, self.spread, self.predictable = median, spread, predictable
        self.lifetime_values = torch.empty(0)  # of all customers, once they are drawn

    def read(self) -> Samples:
        generator = self.generator()
        features = torch.randn(self.total, self.dimensions, generator=generator)
        leaving, worth = torch.linalg.qr(torch.randn(self.dimensions, 2, generator=generator)).Q.unbind(1)
        chance = torch.rand(self.total, generator=generator, dtype=torch.float64)
        latent = self.signal * (features @ leaving).double() + torch.log(chance / (1 - chance))
        target = torch.zeros(self.total, dtype=torch.long)
        target[latent.topk(max(1, round(self.share * self.total))).indices] = 1
        own = torch.randn(self.total, generator=generator)
        log_value = self.predictable * (features @ worth) + math.sqrt(1 - self.predictable**2) * own
        self.lifetime_values = self.median * torch.exp(self.spread * log_value)
        return Samples(features, target, "multiclass", ["stays", "leaves"])

    def encode(self, samples: Samples) -> tuple[Split, Split, Split]:
        train, val, test = (
            {**split, "lifetime_value": self.lifetime_values[rows]} for split, rows in zip(super().encode(samples), self.rows.values(), strict=True)
        )
        return train, val, test
