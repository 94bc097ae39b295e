"""What batch transforms share: a batch in, a new batch out, and what they ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from components.validation import require

if TYPE_CHECKING:
    from components.data.base import Batch


class Transform(nn.Module):
    """Base of transforms of training batches: a function of a batch that returns a new one and leaves the given one alone.

    Transforms act on the whole batch at once, on its device and with torch's global random state, which checkpoints hold.
    """

    def forward(self, batch: Batch) -> Batch:
        raise NotImplementedError

    def extra_repr(self) -> str:
        shown = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "training" and isinstance(v, int | float | str | bool | tuple)}
        return ", ".join(f"{k}={v!r}" for k, v in shown.items())


def real_inputs(batch: Batch, who: str) -> Tensor:
    """The batch's ``inputs``, which must be floating point: tokens can be neither mixed nor disturbed."""
    inputs: Tensor = batch["inputs"]
    require(inputs.is_floating_point(), f"{who} takes floating-point inputs", inputs.dtype)
    return inputs


def image_inputs(batch: Batch, who: str) -> Tensor:
    """The batch's ``inputs``, which must be pictures (N, C, H, W)."""
    inputs = real_inputs(batch, who)
    require(inputs.ndim == 4, f"{who} takes pictures, inputs (N, C, H, W)", tuple(inputs.shape))
    return inputs


def is_per_pixel(target: Any, inputs: Tensor) -> bool:
    """Whether ``target`` (N, H, W) or (N, K, H, W) has one entry for each pixel of ``inputs`` (N, C, H, W), as in segmentation."""
    return isinstance(target, Tensor) and target.ndim >= 3 and target.shape[-2:] == inputs.shape[-2:]


def positive_range(name: str, value: Any, *, at_most: float | None = None) -> tuple[float, float]:
    """A range (low, high) with 0 < low <= high."""
    pair = tuple(value) if isinstance(value, Sequence) else ()
    fits = len(pair) == 2 and 0 < pair[0] <= pair[1] and (at_most is None or pair[1] <= at_most)
    require(fits, f"{name} must be [low, high] with 0 < low <= high" + ("" if at_most is None else f" <= {at_most:g}"), value)
    return float(pair[0]), float(pair[1])
