"""Class-incremental learning: a classifier of all classes so far, when of the old ones only the distribution of their features is left.

What is kept of a class is a Gaussian: the mean and the covariance of its features. The loss here is about such a Gaussian as a whole, not about
samples drawn from it; ``task=class_incremental`` keeps the Gaussians and hands them over, and to losses of ``logits`` and ``target`` samples of them.
The element is the Gaussian.
"""

from __future__ import annotations

import torch
from torch import Tensor

from components.losses.base import Loss, Reduction, at_least_float32, is_readable
from components.validation import require


class DistributionBoundLoss(Loss):
    r"""Cross-entropy over infinitely many samples of each class's Gaussian, by an upper bound in closed form: no sampling, all classes alike.

    For a Gaussian :math:`N(\mu, \Sigma)` of class *k* and a linear layer with rows :math:`w_j` and biases :math:`b_j`, with :math:`v_j = w_j - w_k`,

    .. math:: \ell = \log \sum_j \exp\Big(v_j^\top \mu + \tfrac12 v_j^\top \hat\Sigma\, v_j + b_j - b_k\Big)
              \;\ge\; \mathbb{E}_{x \sim N(\mu, \hat\Sigma)}\big[-\log \operatorname{softmax}(W x + b)_k\big],
              \qquad \hat\Sigma = \Sigma + \lambda\, o \operatorname{diag}(\Sigma)

    by Jensen's inequality; the term of *j = k* is 1. *o* is 1 for classes of earlier phases, whose features have drifted and spread since they were
    measured, else 0: enlarging their variance by :math:`\lambda` = ``enlarge`` adds the margin :math:`\tfrac{\lambda}{2} \sum_d v_{jd}^2 \Sigma_{dd}`
    to every wrong class's logit, larger for spread-out classes and far-apart weights (AMarX, adaptive margin softmax cross-entropy).
    ``enlarge=0`` is the paper's L_DB; :math:`\Sigma = 0` is cross-entropy on the class means.

    Try it where classes arrive one after the other and no sample of the old ones may be kept. The paper's λ is not known to us: the option's 0.5
    is our reading, and so is that only old classes are enlarged (hand over ``is_old`` = 1 for all to enlarge all).

    Takes :math:`O(M C D^2)` time and :math:`O(M C D)` memory for *M* Gaussians, *C* classes and *D* features.

    Args:
        enlarge: :math:`\lambda \ge 0`.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per Gaussian).

    Shapes:
        feature_means (M, D); feature_covariances (M, D, D), or variances (M, D); class_target (M,), class indices; output_weight (C, D);
        output_bias (C,); is_old (M,), in {0, 1}.

    Raises:
        ValueError: if ``enlarge < 0``, shapes disagree or a class lies outside [0, C).

    Source:
        Yao and Chang, "Adaptive Margin Global Classifier for Exemplar-Free Class-Incremental Learning", 2024, arXiv:2409.13275; the bound: Wang et
        al., "Implicit Semantic Data Augmentation for Deep Networks", NeurIPS 2019, arXiv:1909.12220.
    """

    def __init__(self, enlarge: float = 0.0, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(enlarge >= 0, "enlarge must be >= 0", enlarge)
        self.enlarge = enlarge

    def forward(
        self, feature_means: Tensor, feature_covariances: Tensor, class_target: Tensor, output_weight: Tensor, output_bias: Tensor, is_old: Tensor
    ) -> Tensor:
        check_gaussians(feature_means, feature_covariances, class_target, output_weight, output_bias, is_old)
        precise = at_least_float32(feature_means.dtype)
        weight, bias, covariances = output_weight.to(precise), output_bias.to(precise), feature_covariances.to(precise)
        apart = weight - weight[class_target].unsqueeze(1)  # (M, C, D): v_j
        variances = covariances if covariances.ndim == 2 else covariances.diagonal(dim1=1, dim2=2)
        spread = (apart.square() * variances.unsqueeze(1)).sum(2)
        quadratic = spread if covariances.ndim == 2 else (product(apart, covariances) * apart).sum(2)
        margins = 0.5 * (quadratic + self.enlarge * is_old.to(precise).unsqueeze(1) * spread)
        means = (apart * feature_means.to(precise).unsqueeze(1)).sum(2)
        values = (means + margins + bias - bias[class_target].unsqueeze(1)).logsumexp(1)
        return self.reduce(values.to(feature_means.dtype))


def product(a: Tensor, b: Tensor) -> Tensor:
    """(M, C, D) times (M, D, D) in the tensors' own precision: autocast would round quadratic forms to two digits."""
    if a.device.type == "meta" or not torch.is_autocast_enabled(a.device.type):
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def check_gaussians(
    feature_means: Tensor, feature_covariances: Tensor, class_target: Tensor, output_weight: Tensor, output_bias: Tensor, is_old: Tensor
) -> None:
    """Refuse Gaussians, their classes or a linear layer that do not fit each other.

    Raises:
        ValueError: naming the argument.
    """
    if feature_means.ndim != 2:
        raise ValueError(f"feature_means must have shape (M, D), but got {tuple(feature_means.shape)}")
    count, size = feature_means.shape
    if feature_covariances.shape not in ((count, size, size), (count, size)):
        raise ValueError(f"feature_covariances must have shape ({count}, {size}, {size}) or ({count}, {size}), but got {tuple(feature_covariances.shape)}")
    if class_target.shape != (count,) or class_target.dtype != torch.long:
        got = f"{class_target.dtype} {tuple(class_target.shape)}"
        raise ValueError(f"class_target must hold one class index (torch.long) a Gaussian, shape ({count},), but got {got}")
    if output_weight.ndim != 2 or output_weight.shape[1] != size:
        raise ValueError(f"output_weight must have shape (C, {size}), but got {tuple(output_weight.shape)}")
    if output_bias.shape != output_weight.shape[:1]:
        raise ValueError(f"output_bias must have shape {tuple(output_weight.shape[:1])}, but got {tuple(output_bias.shape)}")
    if is_old.shape != (count,):
        raise ValueError(f"is_old must have shape ({count},), but got {tuple(is_old.shape)}")
    if is_readable(class_target) and count:
        low, high = (int(bound) for bound in torch.aminmax(class_target))
        if low < 0 or high >= len(output_weight):
            raise ValueError(f"class_target must hold classes in [0, {len(output_weight)}), but got {low if low < 0 else high}")
