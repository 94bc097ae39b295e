"""Reweighting by division of the training set into samples that are believed and samples that are not."""

from __future__ import annotations

import torch
from torch import Tensor

from components.counter_random import uniform
from components.reweighting.base import Reweighter
from components.validation import require


class ConfidentConsensusDivision(Reweighter):
    r"""Trains on samples that two heads agree to be clean: weight 1 where both say so, 0 where neither does, a toss of a coin where they differ.

    At the start of each epoch, for each head by itself, the losses of all training samples are scaled to [0, 1] and a mixture of two Gaussians is
    fitted to them; a sample is clean if

    .. math:: P(\text{component of the lower mean} \mid \ell_i) > \tfrac12

    (of the 1 % least likely ones it is never believed if nothing else looks noisy). Coins are tossed anew every epoch; they, and so all weights,
    are a function of the losses, the seed and the epoch, so that there is no state to save.

    Try it with ``task=noisy_pairs`` where a share of the pairs is mismatched. The mixture starts from the lowest and the highest loss (the authors'
    from k-means with a random start: our reading).

    Args:
        iterations: of the mixture's EM, at most. The authors take 100 where more than 40 % of the pairs may be wrong.
        tolerance: EM stops when the mean log-likelihood changes by less. The authors: 1e-4 where more than 40 % may be wrong.
        variance_floor: added to each component's variance. The authors: 1e-6 where more than 40 % may be wrong.
        seed: of the coins.

    Shapes:
        index (N,); training_losses (H, num_samples), one row a head; epoch an int. The result is (N,), 0 or 1.

    Raises:
        ValueError: if ``iterations < 1``, ``tolerance`` or ``variance_floor`` is <= 0, or training_losses is not (H, num_samples).

    Source:
        Qin et al., "Noisy-Correspondence Learning for Text-to-Image Person Re-identification", CVPR 2024, arXiv:2308.09911; the division by one head:
        Huang et al., "Learning with Noisy Correspondence for Cross-modal Matching", NeurIPS 2021.
    """

    def __init__(self, iterations: int = 10, tolerance: float = 1e-2, variance_floor: float = 5e-4, seed: int = 0) -> None:
        super().__init__()
        require(iterations >= 1, "iterations must be >= 1", iterations)
        require(tolerance > 0, "tolerance must be > 0", tolerance)
        require(variance_floor > 0, "variance_floor must be > 0", variance_floor)
        self.iterations, self.tolerance, self.variance_floor, self.seed = iterations, tolerance, variance_floor, seed
        self._made_from: tuple[Tensor, int, int] | None = None
        self._weights = torch.empty(0)

    def forward(self, index: Tensor, training_losses: Tensor, epoch: int) -> Tensor:
        require(training_losses.ndim == 2, "training_losses must have one row a head, shape (H, num_samples)", tuple(training_losses.shape))
        made_from = self._made_from
        if made_from is None or made_from[0] is not training_losses or made_from[1:] != (training_losses._version, epoch):
            self._made_from, self._weights = (training_losses, training_losses._version, epoch), self.divide(training_losses, epoch)
        return self._weights[index]

    @torch.no_grad()
    def divide(self, training_losses: Tensor, epoch: int) -> Tensor:
        """(num_samples,) weights from (H, num_samples) losses."""
        votes = self.clean(training_losses.double()).double().mean(0)
        coin = uniform(self.seed, epoch, torch.arange(training_losses.shape[1], device=training_losses.device)) < 0.5
        return torch.where((votes > 0) & (votes < 1), coin, votes == 1).float()

    def clean(self, losses: Tensor) -> Tensor:
        """(H, num_samples) whether each head takes each sample for clean."""
        low, high = losses.amin(1, keepdim=True), losses.amax(1, keepdim=True)
        scaled = (losses - low) / (high - low).clamp(min=torch.finfo(losses.dtype).tiny)
        likely = probability_of_lower(scaled, self.iterations, self.tolerance, self.variance_floor)
        least = likely.sort(1).values[:, likely.shape[1] // 100].unsqueeze(1)
        threshold = torch.where(likely.amin(1, keepdim=True) > 0.5, least, 0.5)
        return likely > threshold


def probability_of_lower(values: Tensor, iterations: int, tolerance: float, variance_floor: float) -> Tensor:
    """(H, n): under a mixture of two Gaussians fitted to each row by EM, how likely each value is to come from the one of the lower mean.

    The mixture starts with its means at the row's lowest and highest value, equal weights and the row's variance. A row stops changing once its
    mean log-likelihood has changed by less than ``tolerance``: without looking at a value on the host, so that nothing waits for the device.
    """
    means = torch.stack([values.amin(1), values.amax(1)], 1)  # (H, 2)
    variances = values.var(1, unbiased=False).unsqueeze(1).expand(-1, 2) + variance_floor
    weights = torch.full_like(means, 0.5)
    before = torch.full_like(means[:, 0], -torch.inf)
    going = torch.ones_like(before, dtype=torch.bool)
    for _ in range(iterations):
        joint = log_joint(values, means, variances, weights)
        evidence = joint.logsumexp(1)
        share = (joint - evidence.unsqueeze(1)).exp()
        size = share.sum(2) + 10 * torch.finfo(values.dtype).eps
        new_means = (share * values.unsqueeze(1)).sum(2) / size
        new_variances = (share * (values.unsqueeze(1) - new_means.unsqueeze(2)).square()).sum(2) / size + variance_floor
        step = going.unsqueeze(1)
        means, variances = torch.where(step, new_means, means), torch.where(step, new_variances, variances)
        weights = torch.where(step, size / size.sum(1, keepdim=True), weights)
        likelihood = evidence.mean(1)
        going = going & ((likelihood - before).abs() >= tolerance)
        before = likelihood
    joint = log_joint(values, means, variances, weights)
    lower = means.argmin(1).reshape(-1, 1, 1).expand(-1, 1, values.shape[1])
    return (joint - joint.logsumexp(1, keepdim=True)).exp().gather(1, lower).squeeze(1)


def log_joint(values: Tensor, means: Tensor, variances: Tensor, weights: Tensor) -> Tensor:
    """(H, 2, n): log of each component's weight times its density at each value."""
    apart = values.unsqueeze(1) - means.unsqueeze(2)
    return weights.log().unsqueeze(2) - 0.5 * (apart.square() / variances.unsqueeze(2) + (2 * torch.pi * variances).log().unsqueeze(2))
