from __future__ import annotations

import pytest
import torch

from components.data import Corruption, Diabetes, Digits


def test_symmetric_noise_makes_exactly_that_share_wrong_and_evenly() -> None:
    target = torch.arange(40_000) % 4
    noisy = Corruption(label_noise=0.4).noisy(target, "multiclass", 4)
    wrong = noisy != target
    assert int(wrong.sum()) == 16_000
    shifts = torch.bincount(((noisy - target) % 4)[wrong], minlength=4).tolist()
    assert shifts[0] == 0 and all(abs(n - 16_000 / 3) < 300 for n in shifts[1:])


def test_pair_noise_goes_to_the_next_class() -> None:
    target = torch.arange(1000) % 5
    noisy = Corruption(label_noise=1.0, noise_kind="pair").noisy(target, "multiclass", 5)
    assert noisy.tolist() == ((target + 1) % 5).tolist()


def test_no_noise_is_the_same_tensor() -> None:
    target = torch.arange(10) % 2
    assert Corruption().noisy(target, "multiclass", 2) is target


def test_noise_does_not_change_its_argument() -> None:
    target = torch.zeros(100, dtype=torch.long)
    Corruption(label_noise=0.5).noisy(target, "multiclass", 3)
    assert int(target.sum()) == 0


def test_ignored_pixels_stay_ignored() -> None:
    target = torch.zeros(4, 8, 8, dtype=torch.long)
    target[:, :4] = -100
    noisy = Corruption(label_noise=1.0).noisy(target, "multiclass", 3)
    assert bool((noisy[:, :4] == -100).all()) and bool((noisy[:, 4:] > 0).all())


def test_multilabel_noise_flips_bits() -> None:
    target = torch.zeros(100, 4, dtype=torch.long)
    assert int(Corruption(label_noise=0.25).noisy(target, "multilabel", 4).sum()) == 100


def test_real_noise_gives_the_target_of_another_sample() -> None:
    target = torch.arange(100.0).unsqueeze(1)
    noisy = Corruption(label_noise=0.3).noisy(target, "real", 0)
    assert int((noisy != target).sum()) == 30
    assert set(noisy.flatten().tolist()) <= set(target.flatten().tolist())


@pytest.mark.parametrize("kind", ["real", "multilabel"])
def test_pair_noise_needs_classes(kind: str) -> None:
    with pytest.raises(ValueError, match="noise_kind=pair needs a target of classes"):
        Corruption(label_noise=0.1, noise_kind="pair").noisy(torch.zeros(10, 1), kind, 1)


def test_long_tail_has_the_published_sizes() -> None:
    target = torch.arange(5000) % 10
    kept = Corruption(imbalance=100).kept(target, "multiclass", 10)
    expected = [round(500 * 100 ** (-c / 9)) for c in range(10)]
    assert torch.bincount(target[kept]).tolist() == expected
    assert (expected[0], expected[-1]) == (500, 5)


def test_fraction_is_stratified_and_keeps_every_class() -> None:
    target = torch.tensor([0] * 100 + [1] * 50 + [2])
    kept = Corruption(fraction=0.1).kept(target, "multiclass", 3)
    assert torch.bincount(target[kept]).tolist() == [10, 5, 1]
    assert kept.tolist() == sorted(kept.tolist())


def test_imbalance_needs_classes() -> None:
    with pytest.raises(ValueError, match="imbalance needs a target with one class per sample"):
        Diabetes(imbalance=10).setup()


def test_missing_values_get_the_mean_of_what_is_left() -> None:
    inputs = torch.arange(400.0).reshape(100, 4)
    imputed = Corruption(missing=0.3).with_missing(inputs, channel_dim=1)
    for column, before in zip(imputed.T, inputs.T, strict=True):
        changed = column != before
        assert 15 <= int(changed.sum()) <= 45
        assert torch.allclose(column[changed], before[~changed].mean(), rtol=1e-5)


def test_a_missing_pixel_is_lost_in_all_channels() -> None:
    inputs = torch.rand(10, 3, 8, 8)
    changed = Corruption(missing=0.5).with_missing(inputs, channel_dim=1) != inputs
    assert bool((changed.all(1) == changed.any(1)).all()) and bool(changed.any())


def test_kinds_draw_independently() -> None:
    plain, both = Digits(label_noise=0.4), Digits(label_noise=0.4, missing=0.2)
    plain.setup()
    both.setup()
    assert torch.equal(plain.splits["train"]["target"], both.splits["train"]["target"])


def test_class_counts_are_those_that_training_sees() -> None:
    data = Digits(imbalance=20, fraction=0.5)
    data.setup()
    counts = data.facts()["class_counts"]
    assert sum(counts) == data.facts()["num_samples"]
    assert counts[0] == max(counts) and round(counts[0] / counts[-1]) in range(18, 23)
