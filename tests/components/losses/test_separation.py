import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses import IdealBinaryMaskLoss, SpectrogramMSELoss
from components.losses.separation import ideal_binary_mask


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(2, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def sources() -> Tensor:
    return torch.rand(2, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class TestIdealBinaryMask:
    @pytest.mark.parametrize("mask", ["sigmoid", "softmax"])
    def test_without_an_opinion_it_is_log_two(self, mask: str, sources: Tensor) -> None:
        assert IdealBinaryMaskLoss(mask=mask)(torch.zeros_like(sources), sources).item() == pytest.approx(math.log(2))

    @pytest.mark.parametrize("mask", ["sigmoid", "softmax"])
    def test_sure_and_right_it_is_zero(self, mask: str, sources: Tensor) -> None:
        logits = 100 * (2 * ideal_binary_mask(sources).double() - 1)
        assert IdealBinaryMaskLoss(mask=mask)(logits, sources).item() == pytest.approx(0, abs=1e-12)

    def test_is_binary_cross_entropy_with_the_mask(self, logits: Tensor, sources: Tensor) -> None:
        louder = torch.stack([sources[:, 0] > sources[:, 1], sources[:, 1] > sources[:, 0]], 1).double()
        torch.testing.assert_close(IdealBinaryMaskLoss()(logits, sources), F.binary_cross_entropy_with_logits(logits, louder))
        torch.testing.assert_close(IdealBinaryMaskLoss(mask="softmax")(logits, sources), F.cross_entropy(logits, sources.argmax(1)))

    def test_both_masks_are_one_for_two_sources(self, logits: Tensor, sources: Tensor) -> None:
        """Opposite scores: a sigmoid for each is a softmax over their halves."""
        opposite = torch.stack([logits[:, 0], -logits[:, 0]], 1)
        torch.testing.assert_close(IdealBinaryMaskLoss()(opposite, sources), IdealBinaryMaskLoss(mask="softmax")(opposite / 2, sources))

    def test_exchanged_sources_complement_the_mask(self, sources: Tensor) -> None:
        assert torch.equal(ideal_binary_mask(sources.flip(1))[:, 0], ~ideal_binary_mask(sources)[:, 0])
        assert torch.equal(ideal_binary_mask(sources * 7.5), ideal_binary_mask(sources))

    def test_equal_sources_belong_to_nobody(self) -> None:
        assert not ideal_binary_mask(torch.ones(1, 3, 2, 2)).any()

    def test_three_sources(self) -> None:
        sources = torch.tensor([1.0, 3.0, 2.0]).reshape(1, 3, 1, 1)
        assert ideal_binary_mask(sources).flatten().tolist() == [False, True, False]

    def test_bad_input(self, logits: Tensor, sources: Tensor) -> None:
        with pytest.raises(ValueError, match="did you mean 'softmax'"):
            IdealBinaryMaskLoss(mask="soft_max")
        with pytest.raises(ValueError, match="K >= 2 sources"):
            IdealBinaryMaskLoss()(logits[:, :1], sources[:, :1])


class TestSpectrogramMSE:
    def test_worked_value(self) -> None:
        """One bin, masks 1/2: (1/2 · 4 - 3)^2 and (1/2 · 4 - 1)^2, their mean."""
        value = SpectrogramMSELoss()(torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1), 4.0), torch.tensor([3.0, 1.0]).reshape(1, 2, 1, 1))
        assert value.item() == pytest.approx(1.0)

    def test_is_the_squared_error_of_the_masked_mixture(self, logits: Tensor, sources: Tensor) -> None:
        mixture = sources.sum(1)
        for mask, share in (("sigmoid", logits.sigmoid()), ("softmax", logits.softmax(1))):
            torch.testing.assert_close(SpectrogramMSELoss(mask=mask)(logits, mixture, sources), F.mse_loss(share * mixture.unsqueeze(1), sources))

    def test_bad_input(self, logits: Tensor, sources: Tensor) -> None:
        with pytest.raises(ValueError, match="mask must be one of"):
            SpectrogramMSELoss(mask="binary")
        with pytest.raises(ValueError, match="mixture_magnitudes must have shape"):
            SpectrogramMSELoss()(logits, sources, sources)
