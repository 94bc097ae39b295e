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
        for kind, terms in (("auxiliary", self.auxiliary), ("regularizer", self.regularizers)):
            for name, term in terms.items():
                value = self._mixed(term.bound, quantities) if kind == "auxiliary" else term.bound(quantities)
                total = total + term.weight_at(step) * value
                parts[f"{kind}.{name}"] = value
        return total, parts

    def bounds(self) -> list[Bound]:
        """All bound components, the main loss first."""
        terms = [*self.auxiliary.values(), *self.regularizers.values()]
        return [self.loss, *(cast(Term, term).bound for term in terms), *([self.reweighting] if self.reweighting is not None else [])]

    def main_loss(self, quantities: Quantities) -> Tensor:
        return self._mixed(self.loss, quantities)

    def per_sample_loss(self, quantities: Quantities) -> Tensor:
        """(N,) the main loss of each sample; a loss of several elements a sample is averaged over them."""
        module = self.loss.module
        if not hasattr(module, "reduction"):
            raise ValueError(f"{self.loss.name} has no reduction, so it can give no loss per sample (reweighting and some regularizers need it)")
        reduction, module.reduction = module.reduction, "none"
        try:
            values = self._mixed(self.loss, quantities)
        finally:
            module.reduction = reduction
        return values.flatten(1).mean(1) if values.ndim > 1 else values

    def _reweighted(self, quantities: Quantities) -> Tensor:
        assert self.reweighting is not None
        weights = self.reweighting(quantities)
        return (weights * quantities["per_sample_loss"]).mean()

    @staticmethod
    def _mixed(loss: Bound, quantities: Quantities) -> Tensor:
        """The loss; for a batch whose samples are mixtures (mixup, cutmix), the same mixture of the losses of both targets.

        ``mix_target`` and the scalar ``mix_weight`` come from the transform. Mixing losses instead of targets is the same for
        cross-entropy and works for every other loss.
        """
        value: Tensor = loss(quantities)
        if "mix_target" not in quantities:
            return value
        other: Tensor = loss(quantities.replace(**quantities["mix_target"]))
        weight = quantities["mix_weight"]
        return torch.lerp(other, value, weight.to(value.dtype))
