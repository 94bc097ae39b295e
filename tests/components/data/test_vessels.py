from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from components.data import Vessels


def loaded(**options: Any) -> Vessels:
    data = Vessels(**{"size": 20, "side": 14, "batch_size": 4, **options})
    data.setup()
    return data


def every(data: Vessels, name: str) -> torch.Tensor:
    return torch.cat([split[name] for split in data.splits.values()])


@pytest.mark.parametrize(("dimensions", "shape"), [(2, (1, 14, 14)), (3, (1, 14, 14, 14))])
def test_pictures_or_volumes(dimensions: int, shape: tuple[int, ...]) -> None:
    data = loaded(dimensions=dimensions)
    facts = data.facts()
    assert facts["input_shape"] == shape and facts["image_size"] == shape[1:] and facts["in_channels"] == 1
    assert every(data, "target").shape[1:] == shape[1:]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_vessel_is_one_piece_from_side_to_side(dimensions: int) -> None:
    for mask in every(loaded(dimensions=dimensions, vessels=1), "target").numpy():
        assert label(mask, np.ones((3,) * dimensions))[1] == 1
        assert any(mask.take(0, axis).any() and mask.take(-1, axis).any() for axis in range(dimensions))


def test_the_signal_has_gaps_and_the_mask_none() -> None:
    settings: dict[str, Any] = {"vessels": 1, "noise": 0.0, "standardise": False}
    whole, broken = loaded(gaps=0, **settings), loaded(gaps=2, fade=0.2, **settings)
    assert torch.equal((every(whole, "inputs")[:, 0] > 0.5).long(), every(whole, "target"))
    values = every(broken, "inputs")[:, 0][every(broken, "target") == 1]
    assert sorted(values.unique().tolist()) == pytest.approx([0.2, 1.0])
    assert 0.05 < float((values < 0.5).float().mean()) < 0.4


def test_noise_is_of_the_given_size() -> None:
    data = loaded(noise=0.3, standardise=False)
    background = every(data, "inputs")[:, 0][every(data, "target") == 0]
    assert float(background.std()) == pytest.approx(0.3, rel=0.03) and abs(float(background.mean())) < 0.02


@pytest.mark.parametrize(
    "wrong",
    [{"dimensions": 4}, {"side": 4}, {"vessels": 0}, {"radius": 0.0}, {"gaps": -1}, {"gap_length": 1.0}, {"fade": 1.5}, {"noise": -1.0}],
)
def test_bad_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Vessels(**wrong)
