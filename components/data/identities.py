"""Recordings of many persons, synthetic: who it is hides under stronger variation that has nothing to do with it."""

from __future__ import annotations

import math
from typing import Any

import torch

from components.data.arrays import Samples
from components.data.synthetic import Synthetic
from components.validation import require


class Identities(Synthetic):
    r"""Many classes whose samples vary more within a class than classes differ, as speech or faces do: for verification and few-shot learning.

    .. math:: x = B\, \tanh\!\big(A\,[u_y;\; \text{nuisance} \cdot v]\big) + \text{noise} \cdot \varepsilon, \qquad u_y, v, \varepsilon \sim N(0, I)

    Each class *y* has one fixed :math:`u_y` (the person), each sample its own *v* (channel, pose, what is said). *A* and *B* are fixed random matrices, the
    same for all classes, so that an embedding which unmixes the classes of training also does for classes that come later. The last ``unseen`` classes are
    held out: validation and test have them alone.

    Args:
        size: samples, over all splits; the classes are equally large.
        classes: of both kinds, 4 or more.
        unseen: classes that training does not have, 2 or more; 0: all classes are in all splits.
        identity: numbers that make a person, D_u.
        variation: numbers that make the sample's own part, D_v.
        nuisance: standard deviation of the latter, relative to the former's.
        dimensions: of the inputs.
        noise: standard deviation of the noise, relative to the inputs'.
        **common: see :class:`~components.data.synthetic.Synthetic`; ``holdout_classes`` names classes of one's own choice in place of ``unseen``.
    """

    def __init__(
        self,
        *,
        size: int = 3000,
        classes: int = 60,
        unseen: int = 20,
        identity: int = 6,
        variation: int = 6,
        nuisance: float = 1.5,
        dimensions: int = 32,
        noise: float = 0.3,
        **common: Any,
    ) -> None:
        require(4 <= classes <= size // 4, f"classes must be in 4 … {size // 4} (a quarter of size)", classes)
        named = common.pop("holdout_classes", None)
        require(bool(named) or unseen == 0 or 2 <= unseen <= classes - 2, f"unseen must be 0 or in 2 … {classes - 2}", unseen)
        for name, value in (("identity", identity), ("variation", variation), ("dimensions", dimensions)):
            require(value >= 1, f"{name} must be >= 1", value)
        require(nuisance >= 0, "nuisance must be >= 0", nuisance)
        require(noise >= 0, "noise must be >= 0", noise)
        super().__init__(size=size, holdout_classes=named or list(range(classes - unseen, classes)), **common)
        self.classes, self.identity, self.variation, self.dimensions = classes, identity, variation, dimensions
        self.nuisance, self.noise = nuisance, noise

    def read(self) -> Samples:
        generator = self.generator()

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        hidden = 2 * self.dimensions
        causes = self.identity + self.variation
        spread = math.sqrt(self.identity + self.nuisance**2 * self.variation)
        into, out = normal(causes, hidden) / spread, normal(hidden, self.dimensions) / math.sqrt(hidden)
        target = torch.arange(self.total) % self.classes
        persons = normal(self.classes, self.identity)
        mixed = torch.cat([persons[target], self.nuisance * normal(self.total, self.variation)], 1)
        clean = torch.tanh(1.5 * mixed @ into) @ out
        inputs = clean + self.noise * clean.std() * normal(self.total, self.dimensions)
        return Samples(inputs, target, "multiclass", [f"person {c}" for c in range(self.classes)])
