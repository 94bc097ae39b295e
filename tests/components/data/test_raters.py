from typing import Any

import pytest
import torch
from scipy.ndimage import label

from components.data import RaterShapes


def loaded(**options: Any) -> RaterShapes:
    data = RaterShapes(**{"size": 100, "batch_size": 4, **options})
    data.setup()
    return data


def every(data: RaterShapes, name: str) -> torch.Tensor:
    return torch.cat([split[name] for split in data.splits.values()])


def test_every_sample_has_its_raters_masks() -> None:
    data = loaded(raters=3)
    masks, target = every(data, "rater_targets"), every(data, "target")
    assert masks.shape == (100, 3, 24, 24) and masks.dtype == torch.long
    assert torch.equal(masks[:, 0], target)
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch["rater_targets"], data.splits["train"]["rater_targets"][batch["index"]])


@pytest.mark.parametrize("inclusion", [0.0, 0.5, 1.0])
def test_raters_include_the_doubtful_disk_as_often_as_they_should(inclusion: float) -> None:
    masks = every(loaded(inclusion=inclusion), "rater_targets").flatten(0, 1)
    pieces = torch.tensor([label(mask.numpy())[1] for mask in masks])
    assert set(pieces.tolist()) <= {1, 2}
    assert float((pieces == 2).float().mean()) == pytest.approx(inclusion, abs=0.08)


def test_without_spread_and_doubt_all_raters_agree() -> None:
    masks = every(loaded(spread=0.0, inclusion=1.0), "rater_targets")
    assert (masks == masks[:, :1]).all()
    assert not (every(loaded(spread=0.5, inclusion=1.0), "rater_targets") == masks).all()


def test_disks_lie_within_the_picture_and_shine_differently() -> None:
    data = loaded(noise=0.0, spread=0.0, inclusion=1.0, standardise=False)
    inputs, target = every(data, "inputs")[:, 0], every(data, "target")
    assert torch.equal((inputs > 0).long(), target)
    assert sorted(inputs.unique().tolist()) == [0.0, 0.5, 1.0]
    assert not target[:, 0].any() and not target[..., -1].any()


def test_fraction_keeps_masks_with_their_pictures() -> None:
    data = loaded(fraction=0.5)
    train = data.splits["train"]
    assert len(train["rater_targets"]) == len(train["inputs"])
    assert torch.equal(train["rater_targets"][:, 0], train["target"])


@pytest.mark.parametrize("wrong", [{"side": 8}, {"raters": 1}, {"inclusion": 1.2}, {"spread": -0.1}, {"radius": 5.0}, {"noise": -1.0}])
def test_bad_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RaterShapes(**wrong)
