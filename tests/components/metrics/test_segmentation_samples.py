import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from components.metrics import GeneralizedEnergyDistance, SampleDiversity


def scores(masks: Tensor, classes: int = 2) -> Tensor:
    """(N, S, H, W) -> (N, S, C, H, W)."""
    return one_hot(masks, classes).movedim(-1, 2).float()


def distance(first: np.ndarray, second: np.ndarray, classes: int) -> float:
    each = [1 - ((first == c) & (second == c)).sum() / ((first == c) | (second == c)).sum() for c in range(1, classes) if ((first == c) | (second == c)).any()]
    return float(np.mean(each)) if each else 0.0


@pytest.mark.parametrize("classes", [2, 4])
def test_is_the_definition(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn, masks = (torch.randint(classes, (3, count, 3, 4), generator=generator) for count in (5, 4))
    drawn[0, :2], masks[0, 0] = 0, 0
    metric = GeneralizedEnergyDistance()
    metric.update(scores(drawn, classes), masks)

    def mean(first: Tensor, second: Tensor) -> float:
        return float(np.mean([distance(a, b, classes) for a in first.numpy() for b in second.numpy()]))

    expected = [2 * mean(d, m) - mean(d, d) - mean(m, m) for d, m in zip(drawn, masks, strict=True)]
    assert metric.compute().item() == pytest.approx(np.mean(expected), abs=1e-6)


def test_the_raters_own_masks_in_their_proportions_are_at_distance_zero() -> None:
    masks = torch.randint(2, (2, 3, 4, 4), generator=torch.Generator().manual_seed(1))
    metric, diversity = GeneralizedEnergyDistance(), SampleDiversity()
    metric.update(scores(masks.repeat(1, 2, 1, 1)), masks)
    assert metric.compute().item() == pytest.approx(0, abs=1e-6)
    diversity.update(scores(masks[:, :1].repeat(1, 4, 1, 1)))
    assert diversity.compute() == 0


def test_worked_value() -> None:
    """Raters: a blob or nothing, half each. Samples: always the blob. 2 · 1/2 - 0 - 1/2; always nothing: the same."""
    blob = torch.zeros(1, 1, 2, 2, dtype=torch.long)
    blob[..., 0] = 1
    masks = torch.cat([blob, 0 * blob], 1)
    for drawn in (blob, 0 * blob):
        metric = GeneralizedEnergyDistance()
        metric.update(scores(drawn.repeat(1, 3, 1, 1)), masks)
        assert metric.compute().item() == pytest.approx(0.5)
    diversity = SampleDiversity()
    diversity.update(scores(masks))
    assert diversity.compute().item() == pytest.approx(0.5)
