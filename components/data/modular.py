"""Modular arithmetic: every pair of residues, a part of which is shown. What networks fit at once and understand late (grokking)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import one_hot

from components.data.arrays import ArrayData, Samples, TensorEncoder
from components.validation import require, require_choice

OPERATIONS = {
    "addition": lambda a, b, modulus: (a + b) % modulus,
    "subtraction": lambda a, b, modulus: (a - b) % modulus,
    "multiplication": lambda a, b, modulus: (a * b) % modulus,
}


class ModularAddition(ArrayData):
    r"""All pairs of residues and what they add up to (or another operation): *p* classes of pairs, of which training sees a part.

    .. math:: x = (\mathbf{1}_a, \mathbf{1}_b) \in \{0, 1\}^{2p}, \qquad y = a + b \bmod p, \qquad a, b = 0, \dots, p - 1

    There is nothing random in it but the splits, so whoever has the rule is always right. Networks fit the training pairs long before they find the
    rule, with softmax's cross-entropy often only with weight decay.

    Args:
        modulus: *p* >= 2, preferably a prime; the set has :math:`p^2` samples. The source's is 113.
        operation: ``addition`` | ``subtraction`` | ``multiplication``.
        **common: see :class:`~components.data.arrays.ArrayData` and :class:`~components.data.base.DataModule`.

    Raises:
        ValueError: an argument out of its range.

    Source:
        Power et al., "Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets", 2022, arXiv:2201.02177; one-hot pairs and 40 % for
        training: Prieto et al., "Grokking at the Edge of Numerical Stability", ICLR 2025, arXiv:2501.04697.
    """

    def __init__(self, *, modulus: int = 59, operation: str = "addition", **common: Any) -> None:
        super().__init__(TensorEncoder(standardise=False), **common)
        require(modulus >= 2, "modulus must be >= 2", modulus)
        require_choice("operation", operation, OPERATIONS)
        self.modulus, self.operation = modulus, operation

    def read(self) -> Samples:
        pairs = torch.cartesian_prod(torch.arange(self.modulus), torch.arange(self.modulus))
        target = OPERATIONS[self.operation](pairs[:, 0], pairs[:, 1], self.modulus)
        return Samples(one_hot(pairs, self.modulus).flatten(1).float(), target, "multiclass", [str(c) for c in range(self.modulus)])
