import pytest
import torch
from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from components.metrics import SourceToDistortion
from components.metrics.separation import separate, signal_to_distortion
from components.spectrogram import istft, stft

N_FFT, HOP, LENGTH = 64, 32, 1024
SURE = 100.0


@pytest.fixture
def sources() -> Tensor:
    """A low tone and a high one: supports that do not meet (but for the window's tails)."""
    time = torch.arange(LENGTH) / 1000
    return torch.stack([torch.sin(2 * torch.pi * 60 * time), 0.7 * torch.sin(2 * torch.pi * 400 * time)]).unsqueeze(0)


def oracle(sources: Tensor) -> Tensor:
    magnitudes = stft(sources, N_FFT, HOP).abs()
    return SURE * (2.0 * (magnitudes == magnitudes.amax(1, keepdim=True)) - 1)


class TestRatio:
    def test_agrees_with_torchmetrics(self) -> None:
        estimate, source = torch.randn(2, 3, 500, generator=torch.Generator().manual_seed(0)).double(), torch.randn(2, 3, 500).double()
        torch.testing.assert_close(signal_to_distortion(estimate, source), scale_invariant_signal_distortion_ratio(estimate, source), atol=1e-6, rtol=1e-6)

    def test_the_level_of_the_estimate_does_not_matter(self) -> None:
        generator = torch.Generator().manual_seed(1)
        source = torch.randn(500, generator=generator)
        estimate = source + 0.1 * torch.randn(500, generator=generator)
        assert signal_to_distortion(7 * estimate, source).item() == pytest.approx(signal_to_distortion(estimate, source).item(), abs=1e-3)
        assert signal_to_distortion(estimate, source).item() == pytest.approx(20, abs=1)

    def test_silence_is_finite(self) -> None:
        nothing, source = torch.zeros(100), torch.randn(100)
        assert torch.isfinite(signal_to_distortion(nothing, source)) and torch.isfinite(signal_to_distortion(source, nothing))
        assert signal_to_distortion(source, source) > 60


class TestSeparation:
    def test_transform_and_back(self) -> None:
        signal = torch.randn(2, 3, LENGTH)
        torch.testing.assert_close(istft(stft(signal, N_FFT, HOP), N_FFT, HOP, LENGTH), signal, atol=1e-5, rtol=1e-5)

    def test_the_ideal_mask_recovers_disjoint_sources(self) -> None:
        """Two sounds one after the other share no bin: the ideal binary mask gives each back."""
        noise = torch.randn(2, LENGTH, generator=torch.Generator().manual_seed(2))
        noise[0, LENGTH // 2 - N_FFT :] = 0
        noise[1, : LENGTH // 2 + N_FFT] = 0
        sources = noise.unsqueeze(0)
        for estimate in ("soft", "binary"):
            found = separate(oracle(sources), sources.sum(1), estimate)
            assert (signal_to_distortion(found, sources) > 60).all()

    def test_the_ideal_mask_of_tones_gains_much(self, sources: Tensor) -> None:
        metric = SourceToDistortion()
        metric.update(oracle(sources), sources.sum(1), sources)
        assert metric.compute() > 20

    def test_the_mixture_itself_gains_nothing(self, sources: Tensor) -> None:
        logits = torch.full((1, 2, N_FFT // 2 + 1, LENGTH // HOP + 1), SURE)
        metric = SourceToDistortion(source=-1)
        metric.update(logits, sources.sum(1), sources)
        assert metric.compute().item() == pytest.approx(0, abs=1e-3)

    def test_clips_are_weighted_by_their_length(self, sources: Tensor) -> None:
        """A clip of half the length counts half."""
        both, long, short = (SourceToDistortion() for _ in range(3))
        half = sources[..., : LENGTH // 2] + 0.3 * torch.randn(1, 2, LENGTH // 2, generator=torch.Generator().manual_seed(3))
        for metric in (both, long):
            metric.update(oracle(sources), sources.sum(1), sources)
        for metric in (both, short):
            metric.update(oracle(half), half.sum(1), half)
        expected = (2 * long.compute() + short.compute()) / 3
        assert both.compute().item() == pytest.approx(expected.item(), rel=1e-5)

    def test_plain_ratio_and_the_other_source(self, sources: Tensor) -> None:
        plain = SourceToDistortion(normalize=False, source=1)
        plain.update(oracle(sources), sources.sum(1), sources)
        found = separate(oracle(sources), sources.sum(1))
        assert plain.compute().item() == pytest.approx(signal_to_distortion(found, sources)[0, 1].item(), rel=1e-5)

    def test_bad_options(self, sources: Tensor) -> None:
        for wrong in ({"source": -2}, {"mask": "hard"}, {"estimate": "none"}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                SourceToDistortion(**wrong)
        with pytest.raises(ValueError, match="source must be below the 2 sources"):
            SourceToDistortion(source=2).update(oracle(sources), sources.sum(1), sources)
