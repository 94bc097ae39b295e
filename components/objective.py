"""The objective: ``loss + Σ weight · auxiliary loss + Σ weight · regularizer``, where a weight is a number or a schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from components.binding import Bound
from components.quantities import Quantities, lazy

Weight = float | Callable[[int], float]


class Term(nn.Module):
    """A bound auxiliary loss or regularizer and its weight."""

    def __init__(self, bound: Bound, weight: Weight = 1.0) -> None:
        super().__init__()
        self.bound = bound
        self.weight = weight

    def weight_at(self, step: int) -> float:
        return self.weight(step) if callable(self.weight) else self.weight


class Objective(nn.Module):
    """What training minimises.

    Args:
        loss: the main loss.
        auxiliary: further losses by name, each with a weight.
        regularizers: regularizers by name, each with a weight.
        reweighting: gives one weight a sample, (N,); the main loss becomes the mean of weight x per-sample loss.
    """

    def __init__(
        self,
        loss: Bound,
        auxiliary: Mapping[str, Term] | None = None,
        regularizers: Mapping[str, Term] | None = None,
        reweighting: Bound | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.auxiliary = nn.ModuleDict(dict(auxiliary or {}))
        self.regularizers = nn.ModuleDict(dict(regularizers or {}))
        self.reweighting = reweighting

    def forward(self, quantities: Quantities, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and its parts by name (unweighted): ``loss``, ``auxiliary.kd``, ``regularizer.l1`` …"""
        quantities = quantities.replace(loss_fn=self.main_loss, per_sample_loss=lazy(self.per_sample_loss))
        main = self.main_loss(quantities) if self.reweighting is None else self._reweighted(quantities)
        total, parts = main, {"loss": main}
        for name, term in self._terms(self.auxiliary):
            parts[f"auxiliary.{name}"] = value = mixed(term.bound, quantities)
            total = total + term.weight_at(step) * value
        for name, term in self._terms(self.regularizers):
            parts[f"regularizer.{name}"] = value = term.bound(quantities)
            total = total + term.weight_at(step) * value
        return total, parts

    def bounds(self) -> list[Bound]:
        """All bound components, the main loss first."""
        terms = [term for _, term in (*self._terms(self.auxiliary), *self._terms(self.regularizers))]
        return [self.loss, *(term.bound for term in terms), *([self.reweighting] if self.reweighting is not None else [])]

    @staticmethod
    def _terms(terms: nn.ModuleDict) -> list[tuple[str, Term]]:
        return [(name, cast(Term, term)) for name, term in terms.items()]

    def main_loss(self, quantities: Quantities) -> Tensor:
        return mixed(self.loss, quantities)

    def per_sample_loss(self, quantities: Quantities) -> Tensor:
        """(N,) the main loss of each sample; a loss of several elements a sample is averaged over them."""
        return mixed(self._unreduced, quantities)

    def _unreduced(self, quantities: Quantities) -> Tensor:
        module = self.loss.module
        if not hasattr(module, "reduction"):
            raise ValueError(f"{self.loss.name} has no reduction, so it can give no loss per sample (reweighting and some regularizers need it)")
        reduction, module.reduction = module.reduction, "none"
        try:
            values: Tensor = self.loss(quantities)
        finally:
            module.reduction = reduction
        return values.flatten(1).mean(1) if values.ndim > 1 else values

    def _reweighted(self, quantities: Quantities) -> Tensor:
        weights = self.reweighting
        assert weights is not None
        # inside the mixture, so that each of a mixed sample's two targets has its own weight
        return mixed(lambda q: (weights(q) * q["per_sample_loss"]).mean(), quantities)


def mixed(loss: Callable[[Quantities], Tensor], quantities: Quantities) -> Tensor:
    """The loss; for a batch whose samples are mixtures (mixup, cutmix), the same mixture of the losses of both targets.

    ``mix_target`` and the scalar ``mix_weight`` come from the transform. Mixing losses instead of targets is the same for
    cross-entropy and works for every other loss.
    """
    if "mix_target" not in quantities:
        return loss(quantities)
    own = quantities.without("mix_target", "mix_weight")
    value, other = loss(own), loss(own.replace(**quantities["mix_target"]))
    return torch.lerp(other, value, quantities["mix_weight"].to(value.dtype))
