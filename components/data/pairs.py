"""Pairs of views: two pictures of the same thing by different instruments, of which some are put together wrongly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from components.data.arrays import Samples, TensorEncoder
from components.data.base import Split
from components.data.synthetic import Synthetic
from components.validation import require


class PairedViews(Synthetic):
    r"""Two linear views of a latent vector, several pairs an identity; a share of the training pairs is mismatched (noisy correspondence).

    .. math:: z_i = u_{y_i} + \text{within} \cdot \varepsilon_i, \qquad x_i^{(m)} = A_m z_i + \text{noise} \cdot \varepsilon_i^{(m)}, \quad m = 1, 2

    with the identity's centre *u*, :math:`A_m` and all :math:`\varepsilon` Gaussian (:math:`A_m` scaled by the square root of the latent size).
    Of ``mismatched`` of the training pairs the second views are exchanged among each other, none stays with its own; the target stays. Validation
    and test pairs are right.

    Args:
        size: pairs, over all splits.
        identities: different :math:`y`, equally many pairs each; the target.
        latent: size of *z*.
        dimensions: of each view.
        within: spread of an identity's pairs, beside 1 between identities.
        noise: standard deviation on each coordinate of each view.
        mismatched: share of the training pairs, in [0, 1].
        **common: see :class:`~components.data.synthetic.Synthetic`; ``standardise`` is for both views.

    Shapes:
        inputs and inputs_2 (N, dimensions), the views; target (N,).

    Raises:
        ValueError: an argument out of its range.

    Source:
        Huang et al., "Learning with Noisy Correspondence for Cross-modal Matching", NeurIPS 2021 (the setting: pairs shuffled on purpose).
    """

    def __init__(
        self,
        *,
        size: int = 3000,
        identities: int = 300,
        latent: int = 16,
        dimensions: int = 32,
        within: float = 0.3,
        noise: float = 0.3,
        mismatched: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(size=size, **common)
        require(2 <= identities <= size // 4, f"identities must be in 2 … {size // 4} (a quarter of size)", identities)
        require(latent >= 1, "latent must be >= 1", latent)
        require(dimensions >= 1, "dimensions must be >= 1", dimensions)
        require(within >= 0, "within must be >= 0", within)
        require(noise >= 0, "noise must be >= 0", noise)
        require(0 <= mismatched <= 1, "mismatched must be in [0, 1]", mismatched)
        self.identities, self.latent, self.dimensions = identities, latent, dimensions
        self.within, self.noise, self.mismatched = within, noise, mismatched
        self.encoder_2 = TensorEncoder(standardise=self.encoder.standardise)  # type: ignore[attr-defined]
        self._second = torch.empty(0)

    def read(self) -> Samples:
        generator = self.generator()

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        target = torch.arange(self.total) % self.identities
        hidden = normal(self.identities, self.latent)[target] + self.within * normal(self.total, self.latent)
        first, self._second = (
            hidden @ normal(self.latent, self.dimensions) / math.sqrt(self.latent) + self.noise * normal(self.total, self.dimensions) for _ in range(2)
        )
        return Samples(first, target, "multiclass", [str(i) for i in range(self.identities)])

    def encode(self, samples: Samples) -> tuple[Split, Split, Split]:
        splits = super().encode(samples)
        if not self._saved:
            self.encoder_2.fit(self._second[self.rows["train"]])
        first, second, third = (
            split | {"inputs_2": self.encoder_2.transform(self._second[rows])} for split, rows in zip(splits, self.rows.values(), strict=True)
        )
        return first, second, third

    def corrupt(self, train: Split) -> Split:
        train = super().corrupt(train)
        count = len(train["target"])
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + 41) % (1 << 63))
        wrong = torch.randperm(count, generator=generator)[: round(self.mismatched * count)]
        second = train["inputs_2"].clone()
        second[wrong] = second[wrong.roll(1)]
        return train | {"inputs_2": second}

    def fitted_state(self) -> dict[str, Any]:
        return super().fitted_state() | {"encoder_2": self.encoder_2.state_dict()}

    def load_fitted_state(self, state: Mapping[str, Any]) -> None:
        super().load_fitted_state(state)
        self.encoder_2.load_state_dict(state["encoder_2"])
