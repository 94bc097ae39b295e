from typing import Any

import pytest
import torch

from components.data import VoiceMixtures
from components.metrics import SourceToDistortion
from components.spectrogram import stft


def loaded(**options: Any) -> VoiceMixtures:
    data = VoiceMixtures(**{"size": 20, "frames": 20, "batch_size": 4, **options})
    data.setup()
    return data


def every(data: VoiceMixtures, name: str) -> torch.Tensor:
    return torch.cat([split[name] for split in data.splits.values()])


def test_shapes_and_what_belongs_together() -> None:
    data = loaded()
    mixture, sources = every(data, "mixture"), every(data, "target_signals")
    assert mixture.shape == (20, 20 * 64) and sources.shape == (20, 2, 20 * 64)
    torch.testing.assert_close(mixture, sources.sum(1))
    magnitudes = every(data, "target_magnitudes")
    assert magnitudes.shape == (20, 2, 65, 21) == (20, 2, *every(data, "inputs").shape[2:])
    torch.testing.assert_close(magnitudes, stft(sources, 128, 64).abs() / 128)
    torch.testing.assert_close(every(data, "mixture_magnitudes"), stft(mixture, 128, 64).abs() / 128)
    assert torch.equal(every(data, "target"), (magnitudes[:, 1] > magnitudes[:, 0]).long())


def test_levels_stay_in_their_range() -> None:
    sources = every(loaded(level=6.0), "target_signals")
    ratio = 10 * (sources[:, 0].square().mean(1) / sources[:, 1].square().mean(1)).log10()
    assert ratio.abs().max() < 6.01 and ratio.std() > 1
    equal = every(loaded(level=0.0), "target_signals").square().mean(2)
    torch.testing.assert_close(equal, torch.ones_like(equal), atol=1e-4, rtol=1e-4)


def test_the_ideal_mask_separates_them() -> None:
    """Voice and bursts mostly lie in other bins: knowing the loudest source of each is worth decibels."""
    data = loaded()
    metric = SourceToDistortion(source=-1)
    target = every(data, "target")
    logits = 100.0 * (2.0 * torch.stack([target == 0, target == 1], 1).float() - 1)
    metric.update(logits, every(data, "mixture"), every(data, "target_signals"))
    assert metric.compute() > 8


@pytest.mark.parametrize("wrong", [{"frames": 2}, {"n_fft": 63}, {"n_fft": 8}, {"hop_length": 65}, {"level": -1.0}])
def test_bad_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        VoiceMixtures(**wrong)
