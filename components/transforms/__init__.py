"""Transforms of training batches: a batch in, a new batch out."""

from components.transforms.base import Transform
from components.transforms.images import ImageAugment, RandomFlip, RandomShift
from components.transforms.mixing import CutMix, Mixup
from components.transforms.noise import GaussianNoise

__all__ = ["CutMix", "GaussianNoise", "ImageAugment", "Mixup", "RandomFlip", "RandomShift", "Transform"]
