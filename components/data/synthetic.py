"""Synthetic sets, whose truth is known. The draw depends on ``split_seed`` alone, so that all runs see the same set."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from components.data.arrays import ArrayData, Samples, TensorEncoder
from components.validation import require, require_choice


class Synthetic(ArrayData):
    """Base of synthetic sets.

    Args:
        size: samples, over all splits.
        standardise: inputs to mean 0 and standard deviation 1 of the training split.
        **common: see :class:`~components.data.arrays.ArrayData` and :class:`~components.data.base.DataModule`.
    """

    def __init__(self, *, size: int, standardise: bool = True, **common: Any) -> None:
        super().__init__(TensorEncoder(standardise=standardise), **common)
        require(size >= 10, "size must be >= 10 samples", size)
        self.total = size

    def generator(self) -> torch.Generator:
        """Of the draw: another one than the splits', though from the same seed."""
        return torch.Generator().manual_seed((self.split_seed * 1_000_003 + 17) % (1 << 63))


class TwoMoons(Synthetic):
    r"""Two interleaved half circles in the plane, one a class, with Gaussian noise.

    With :math:`t \sim U(0, \pi)`: class 0 at :math:`(\cos t, \sin t)`, class 1 at :math:`(1 - \cos t, 1/2 - \sin t)`.

    Args:
        size: samples, over all splits; half of them in each class.
        noise: standard deviation of the noise on both coordinates.
        **common: see :class:`Synthetic`.
    """

    def __init__(self, *, size: int = 1000, noise: float = 0.15, **common: Any) -> None:
        super().__init__(size=size, **common)
        require(noise >= 0, "noise must be >= 0", noise)
        self.noise = noise

    def read(self) -> Samples:
        generator = self.generator()
        target = torch.arange(self.total) % 2
        angle = math.pi * torch.rand(self.total, generator=generator)
        upper = torch.stack([angle.cos(), angle.sin()], dim=1)
        lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
        points = torch.where(target.bool().unsqueeze(1), lower, upper)
        return Samples(points + self.noise * torch.randn(points.shape, generator=generator), target, "multiclass", ["upper", "lower"])


class GaussianMixture(Synthetic):
    r"""One Gaussian a class, with identity covariance; the means lie at random on a sphere.

    .. math:: x = \text{separation} \cdot u_y + \varepsilon, \qquad u_y \text{ a unit vector}, \quad \varepsilon \sim N(0, I)

    The nearest mean is the best possible classifier (:meth:`best_accuracy` estimates what it reaches).

    Args:
        size: samples, over all splits; the classes are equally large.
        classes: C, 2 or more.
        dimensions: of the inputs.
        separation: distance of every mean from the origin, in standard deviations.
        **common: see :class:`Synthetic`.
    """

    def __init__(self, *, size: int = 2000, classes: int = 5, dimensions: int = 10, separation: float = 3.0, **common: Any) -> None:
        super().__init__(size=size, **common)
        require(2 <= classes <= size // 4, f"classes must be in 2 … {size // 4} (a quarter of size)", classes)
        require(dimensions >= 1, "dimensions must be >= 1", dimensions)
        require(separation >= 0, "separation must be >= 0", separation)
        self.classes, self.dimensions, self.separation = classes, dimensions, separation

    def read(self) -> Samples:
        generator = self.generator()
        target = torch.arange(self.total) % self.classes
        means = self.means(generator)
        points = means[target] + torch.randn(self.total, self.dimensions, generator=generator)
        return Samples(points, target, "multiclass", [str(c) for c in range(self.classes)])

    def means(self, generator: torch.Generator) -> Tensor:
        directions = torch.randn(self.classes, self.dimensions, generator=generator)
        return self.separation * directions / directions.norm(dim=1, keepdim=True)

    def best_accuracy(self) -> float:
        """Share of all samples of the draw whose nearest true mean is their own class's."""
        samples = self.read()
        nearest = torch.cdist(samples.inputs, self.means(self.generator())).argmin(1)
        return float((nearest == samples.target).double().mean())


class TeacherStudent(Synthetic):
    r"""Gaussian inputs whose target is what a fixed random network (the teacher) says of them.

    .. math:: f(x) = W_2 \tanh(W_1 x + b), \qquad y = f(x) / \operatorname{std} f + \text{noise} \cdot \varepsilon

    with :math:`W_1, W_2` Gaussian, scaled by the square root of their inputs. For ``kind=class`` the target is the largest output.

    Args:
        size: samples, over all splits.
        dimensions: of the inputs.
        outputs: values to predict, or classes.
        hidden: units of the teacher.
        noise: standard deviation of the noise on the teacher's outputs, whose own standard deviation is 1.
        kind: ``real`` or ``class``.
        **common: see :class:`Synthetic`.

    Source:
        Saad & Solla, "On-line learning in soft committee machines", 1995 (the setting).
    """

    def __init__(
        self, *, size: int = 2000, dimensions: int = 20, outputs: int = 1, hidden: int = 16, noise: float = 0.1, kind: str = "real", **common: Any
    ) -> None:
        super().__init__(size=size, **common)
        require(dimensions >= 1, "dimensions must be >= 1", dimensions)
        require(hidden >= 1, "hidden must be >= 1", hidden)
        require(noise >= 0, "noise must be >= 0", noise)
        require_choice("kind", kind, ("real", "class"))
        require(outputs >= (2 if kind == "class" else 1), "outputs must be >= 1, for kind=class >= 2", outputs)
        self.dimensions, self.outputs, self.hidden, self.noise, self.kind = dimensions, outputs, hidden, noise, kind

    def read(self) -> Samples:
        generator = self.generator()
        first = torch.randn(self.dimensions, self.hidden, generator=generator, dtype=torch.float64) / math.sqrt(self.dimensions)
        bias = torch.randn(self.hidden, generator=generator, dtype=torch.float64)
        second = torch.randn(self.hidden, self.outputs, generator=generator, dtype=torch.float64) / math.sqrt(self.hidden)
        inputs = torch.randn(self.total, self.dimensions, generator=generator, dtype=torch.float64)
        said = torch.tanh(inputs @ first + bias) @ second
        # fixed by the teacher on inputs of its own, so that no sample of the set tells of another one
        own = torch.randn(10_000, self.dimensions, generator=generator, dtype=torch.float64)
        scale = (torch.tanh(own @ first + bias) @ second).std(0)
        values = said / scale + self.noise * torch.randn(said.shape, generator=generator, dtype=torch.float64)
        if self.kind == "real":
            return Samples(inputs.float(), values, "real", [])
        return Samples(inputs.float(), values.argmax(1), "multiclass", [str(c) for c in range(self.outputs)])


class RareGradients(Synthetic):
    r"""A line through 0 whose slope a few large gradients ought to decide: Adam forgets them between one and the next.

    Of a ``share`` of the samples the input is *C*, of all others *-s*, each up to ``spread`` more or less; the target is :math:`-|x|`. With
    ``loss=l1`` and a weight *w* in [-1, 1]

    .. math:: \ell(C) = C\,(w + 1), \qquad \ell(-s) = s\,(1 - w)

    are linear: their sum falls towards *w* = -1 if :math:`\text{share} \cdot C > (1 - \text{share})\, s`, and *w* = 1 is the worst point.
    Meant for ``batch_size=1`` and one weight without a bias.

    Args:
        size: samples, over all splits.
        large: *C* > 0; default 3.
        small: *s* > 0; default 1.
        share: of the large ones, in (0, 1); default 1/3.
        spread: how much inputs differ, in proportion, in [0, 1); default 0.05.
        **common: see :class:`Synthetic`.

    Raises:
        ValueError: an argument out of its range.

    Source:
        Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond", ICLR 2018, arXiv:1904.09237, section 3; their experiments:
        ``large=1010 small=10 share=0.01 spread=0``.
    """

    def __init__(self, *, size: int = 3000, large: float = 3.0, small: float = 1.0, share: float = 1 / 3, spread: float = 0.05, **common: Any) -> None:
        super().__init__(size=size, **common)
        require(large > 0, "large must be > 0", large)
        require(small > 0, "small must be > 0", small)
        require(0 < share < 1, "share must be in (0, 1)", share)
        require(0 <= spread < 1, "spread must be in [0, 1)", spread)
        self.large, self.small, self.share, self.spread = large, small, share, spread

    def read(self) -> Samples:
        rare = torch.arange(self.total) < round(self.share * self.total)
        sizes = 1 + self.spread * (2 * torch.rand(self.total, generator=self.generator()) - 1)
        inputs = (torch.where(rare, self.large, -self.small) * sizes).unsqueeze(1)
        return Samples(inputs, -inputs.abs().double(), "real", [])
