"""Away from where self-training leads: Neon, which extrapolates from a model's weights against a fine-tuning on its own samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from components.averaging.weights import Buffers, WeightAverage, average_dtype
from components.schedules.base import require_number
from components.validation import require


@torch.no_grad()
def neon(base: Mapping[str, Tensor], degraded: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
    r"""Merge a model and its degraded copy: :math:`\theta = \theta_r - w\,(\theta_s - \theta_r)`.

    The sampler of a model that is trained on its own samples prefers its modes, so that the fine-tuning's gradient points against that of the
    real data; a step against it is then one along the real gradient (:func:`gradient_cosine` tells whether it is so).

    Args:
        base: state dictionary :math:`\theta_r`, trained on real data. Of a model with averaging, the average.
        degraded: :math:`\theta_s`, the base fine-tuned for a little while on only its own samples.
        weight: *w*; usual 0.25 to 3, chosen on validation data. 0 gives the base, -1 the degraded model, both to the last bit.

    Returns:
        A new state dictionary. Half precision is merged in float32; what is no floating point (counters) is the base's.

    Raises:
        ValueError: ``weight`` is not finite, or the two dictionaries have other names or shapes.

    Source:
        Alemohammad et al., "Neon: Negative Extrapolation From Self-Training Improves Image Generation", 2025, arXiv:2510.03597.
    """
    require_number("weight", weight, -float("inf"))
    strange = sorted(set(base) ^ set(degraded))
    require(not strange, "base and degraded must be of one model; names that only one of them has", strange)
    merged = {}
    for name, tensor in base.items():
        other = degraded[name]
        require(tensor.shape == other.shape, f"base and degraded must be of one model; the shapes of {name} are", (tuple(tensor.shape), tuple(other.shape)))
        if tensor.is_floating_point():
            exact = average_dtype(tensor)
            merged[name] = torch.lerp(tensor.to(exact), other.to(exact), -weight).to(tensor.dtype)
        else:
            merged[name] = tensor.clone()
    return merged


def gradient_cosine(real: Tensor, synthetic: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    r"""Cosine of the angle between the gradients of two losses: negative where :func:`neon` helps.

    Args:
        real: the loss of the base model on held-out real data, a scalar with a graph.
        synthetic: its loss on its own samples.
        parameters: those that fine-tuning trains.

    Returns:
        A scalar in [-1, 1]; 0 if one of the gradients vanishes.
    """
    wanted = [p for p in parameters if p.requires_grad]
    gradients = [torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True, materialize_grads=True) for loss in (real, synthetic)]
    one, other = (torch.cat([g.flatten().double() for g in gradient]) for gradient in gradients)
    return torch.nn.functional.cosine_similarity(one, other, dim=0)


class NegativeExtrapolation(WeightAverage):
    r"""A fine-tuning whose outcome is turned round: what is evaluated is :math:`\theta_0 - w\,(\theta - \theta_0)`, see :func:`neon`.

    For ``losskit train ckpt_path=BASE data=SAMPLES averaging=neon`` with the base model's own samples as training data and real data for
    validation: every validation shows the merged model, the checkpoints hold it, and training itself goes on from :math:`\theta`.

    Args:
        weight: *w*; default 1. 0 evaluates the weights at the beginning, -1 the current ones (plain training), between them what
            interpolates (as in robust fine-tuning).
        buffers: extrapolate batch normalisation's running statistics too (``average``), or keep the current ones (``copy``, the default: an
            extrapolated variance may be negative).

    Raises:
        ValueError: ``weight`` is not finite.

    Source:
        Alemohammad et al., 2025, arXiv:2510.03597; -1 < w < 0: Wortsman et al., "Robust Fine-Tuning of Zero-Shot Models", CVPR 2022,
        arXiv:2109.01903.
    """

    def __init__(self, weight: float = 1.0, buffers: Buffers = "copy") -> None:
        require_number("weight", weight, -float("inf"))
        super().__init__(buffers=buffers, initial=True)
        self.weight = weight

    def due(self, step: int) -> bool:
        return False  # the average stays what it began with: the base

    @torch.no_grad()
    def result(self) -> Mapping[str, Tensor]:
        current = self._live if self._current is None else self._current
        base = list(self._average.values())
        merged = torch._foreach_lerp(base, [current[name].detach().to(self._average[name].dtype) for name in self._average], -self.weight)
        return dict(zip(self._average, merged, strict=True))
