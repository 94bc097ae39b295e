"""What reweighters share. A reweighter gives each sample of the batch a weight; the objective is the mean of weight × loss."""

from __future__ import annotations

from torch import nn


class Reweighter(nn.Module):
    """Base of reweighters: ``forward``'s parameters are names of :mod:`components.quantities`, the result is (N,), each >= 0.

    The weights are data to the optimizer: no gradient passes through them.
    """

    def extra_repr(self) -> str:
        shown = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "training" and isinstance(v, int | float | str | bool)}
        return ", ".join(f"{k}={v!r}" for k, v in shown.items())
