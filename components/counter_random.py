"""Random numbers that are a function of where they are asked for: no generator, no order of calls, nothing to restore.

:func:`random_bits` mixes whole numbers (a seed, a step, a row …) into one that looks random. It runs on the device, compiles, and gives the
same bits everywhere. What is drawn from it needs no random state in a checkpoint: the numbers that went in say it all.
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, as all constants here, in 64 bits with a sign
MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
DIGITS = 23
"""Binary digits of a draw from (0, 1): as many as float32 holds of numbers that far from 0 and from 1."""


def random_bits(*numbers: int | Tensor) -> Tensor:
    """Bits that look random, one int64 for each element of the broadcast ``numbers``.

    Each number is added to what the ones before it gave, which then goes through SplitMix64's finaliser: sums wrap around 2⁶⁴.

    Args:
        numbers: whole numbers or int64 tensors, one tensor at least.

    Source:
        Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014 (SplitMix64).
    """
    tensors = [number for number in numbers if isinstance(number, Tensor)]
    if not tensors:
        raise ValueError("numbers must hold one tensor at least")
    mixed = torch.zeros((), dtype=torch.int64, device=tensors[0].device)
    for number in numbers:
        mixed = _finalise((mixed + number) * GOLDEN + GOLDEN)
    return mixed


def uniform(*numbers: int | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws from the uniform distribution on the open interval (0, 1), of ``dtype``, from :func:`random_bits` of ``numbers``."""
    top = _shifted(random_bits(*numbers), 64 - DIGITS)
    return (top.to(dtype) + 0.5) * 2.0**-DIGITS


def normal(*numbers: int | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws from the standard normal distribution, of ``dtype``, from :func:`random_bits` of ``numbers``; none is beyond ±5.3."""
    return torch.special.ndtri(uniform(*numbers, dtype=dtype))


def _finalise(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * MIX_1
    x = (x ^ _shifted(x, 27)) * MIX_2
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, places: int) -> Tensor:
    """To the right, with zeros from the left: torch's own shift repeats the sign."""
    return (x >> places) & ((1 << (64 - places)) - 1)
