"""Ratings on levels: the numbers of the authors' label, and the fidelity of pairs."""

import math

import pytest
import torch

from components.losses import ScoreDistributionLoss, ThurstoneFidelityLoss
from components.losses.ordinal import adjusted_label, linear_label, moments, on_levels, order_probability, overlap, raw_label, soft_label

LEVELS = torch.arange(1.0, 6.0, dtype=torch.float64)


def values(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def logits_of(score, width=30.0):
    """Logits over 5 levels whose expected level is near ``score``."""
    return -width * (LEVELS - score).square()


class TestLabel:
    def test_worked_value(self):
        raw = raw_label(values(3.2), values(0.6), 5)
        torch.testing.assert_close(raw.flip(1), values(0.007386, 0.273350, 0.628972, 0.089985, 0.000800)[None], atol=1e-6, rtol=0)
        adjusted = adjusted_label(raw, values(3.2))
        torch.testing.assert_close(adjusted.flip(1), values(0.003892, 0.274542, 0.636430, 0.087946, -0.002810)[None], atol=2e-6, rtol=0)
        assert adjusted.sum().item() == pytest.approx(1, abs=1e-6) and (adjusted @ LEVELS).item() == pytest.approx(3.2, abs=1e-6)
        a = (adjusted[0, 0] - adjusted[0, 1]) / (raw[0, 0] - raw[0, 1])
        assert a.item() == pytest.approx(1.017620, abs=1e-5)
        assert (adjusted[0, 0] - a * raw[0, 0]).item() == pytest.approx(-0.003624, abs=1e-5)

    def test_small_deviation_falls_back_to_two_levels(self):
        torch.testing.assert_close(soft_label(values(3.2), values(0.05), 5), values(0, 0, 0.8, 0.2, 0)[None])

    def test_label_whose_mean_is_off_after_clipping_falls_back(self):
        """Clipping comes first, then the mean is looked at: at the end of the scale a wide label loses mass on one side."""
        mean, std = values(1.05), values(1.5)
        clipped = adjusted_label(raw_label(mean, std, 5), mean).clamp(min=0)
        assert ((clipped * LEVELS).sum() - 1.05).abs() > 0.1
        torch.testing.assert_close(soft_label(mean, std, 5), linear_label(mean, 5))

    def test_mass_of_the_cdf_label(self):
        raw = raw_label(values(3.0), values(0.5), 5, "cdf")
        assert raw[0, 2].item() == pytest.approx(math.erf(1 / math.sqrt(2)), abs=1e-9)

    def test_other_labels(self):
        torch.testing.assert_close(soft_label(values(3.2, 5.0, 1.4), values(1, 1, 1), 5, "one_hot").argmax(1), torch.tensor([2, 4, 0]))
        torch.testing.assert_close((soft_label(values(3.7, 1.0), values(1, 1), 5, "linear") * LEVELS).sum(1), values(3.7, 1.0))

    def test_levels_of_a_data_set(self):
        mean, std = on_levels(values(0, 50, 100), values(10, 10, 10), 0.0, 100.0)
        assert mean.tolist() == [1, 3, 5] and std.tolist() == pytest.approx([0.4] * 3)


class TestScoreDistribution:
    def test_is_the_divergence_from_the_label(self):
        logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        mean, std = values(1.7, 3.2, 4.1, 2.5), values(0.5, 0.6, 0.4, 0.05)
        label = soft_label(mean, std, 5)
        expected = torch.nn.functional.kl_div(logits.log_softmax(1), label, reduction="none").sum(1)
        torch.testing.assert_close(ScoreDistributionLoss(reduction="none")(logits, mean, std), expected)

    def test_one_hot_is_cross_entropy_on_the_nearest_level(self):
        logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        value = ScoreDistributionLoss(label="one_hot")(logits, values(1.2, 2.6, 4.9, 3.0), torch.ones(4, dtype=torch.float64))
        torch.testing.assert_close(value, torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2, 4, 2])))

    def test_a_missing_mean_is_ignored(self):
        logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
        mean, std = values(1.2, math.nan, 4.9), torch.ones(3, dtype=torch.float64)
        value = ScoreDistributionLoss()(logits, mean, std)
        torch.testing.assert_close(value, ScoreDistributionLoss()(logits[[0, 2]], mean[[0, 2]], std[[0, 2]]))
        assert (torch.autograd.grad(value, logits)[0][1] == 0).all()

    @pytest.mark.parametrize(
        ("options", "message"), [({"label": "soft"}, "label must be one of"), ({"min_std": -1}, "min_std"), ({"max_shift": -1}, "max_shift")]
    )
    def test_refuses_wrong_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            ScoreDistributionLoss(**options)


class TestFidelity:
    def test_worked_value(self):
        p, true = (order_probability(values(1, 0), values(v, v))[0, 1] for v in (1.0, 0.25))
        assert p.item() == pytest.approx(0.760250, abs=1e-6) and true.item() == pytest.approx(0.921350, abs=1e-6)
        assert (1 - overlap(p, true)).item() == pytest.approx(0.025749, abs=1e-6)
        assert overlap(p, p).item() == pytest.approx(1, abs=1e-6)

    def test_loss_of_one_pair(self):
        logits = torch.stack([logits_of(4.0), logits_of(3.0)])
        value = ThurstoneFidelityLoss()(logits, values(4, 3), values(0.5, 0.5), torch.zeros(2, dtype=torch.long))
        assert value.item() == pytest.approx(0.025749, abs=1e-6)

    def test_swapping_a_pair_changes_nothing(self):
        logits, mean, std = torch.stack([logits_of(4.2), logits_of(2.9)]), values(3.3, 3.1), values(0.4, 0.7)
        group = torch.zeros(2, dtype=torch.long)
        loss = ThurstoneFidelityLoss()
        torch.testing.assert_close(loss(logits, mean, std, group), loss(logits.flip(0), mean.flip(0), std.flip(0), group))

    def test_a_constant_added_to_a_data_set_changes_nothing(self):
        scores, mean, std, group = values(2.0, 3.0, 2.5, 4.0), values(2, 3, 4, 1), values(0.4, 0.7, 0.5, 0.5), torch.tensor([0, 0, 1, 1])
        loss = ThurstoneFidelityLoss()
        plain = loss(torch.stack([logits_of(s) for s in scores]), mean, std, group)
        moved = loss(torch.stack([logits_of(s) for s in scores + values(1, 1, 0, 0)]), mean + values(0, 0, 1.5, 1.5), std, group)
        torch.testing.assert_close(moved, plain, rtol=1e-6, atol=1e-9)

    def test_only_pairs_of_one_data_set_count(self):
        logits, mean, std = torch.randn(6, 5, dtype=torch.float64), values(1, 2, 3, 4, 5, 2), values(0.4, 0.7, 0.5, 0.5, 0.3, 0.6)
        group = torch.tensor([0, 0, 0, 0, 1, 1])
        loss = ThurstoneFidelityLoss()
        first = loss(logits[:4], mean[:4], std[:4], group[:4])
        second = loss(logits[4:], mean[4:], std[4:], group[4:])
        torch.testing.assert_close(loss(logits, mean, std, group), (12 * first + 2 * second) / 14)

    def test_predicted_deviations(self):
        logits = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
        mean, std, group = values(4, 3), values(0.5, 0.5), torch.zeros(2, dtype=torch.long)
        score, variance = moments(logits)
        p = torch.special.ndtr((score[0] - score[1]) / (variance.sum() + 1e-8).sqrt())
        expected = 1 - overlap(p, torch.special.ndtr(values(1.0) / 0.5**0.5))
        for detach in (False, True):
            value = ThurstoneFidelityLoss(stds="predicted", detach_stds=detach)(logits, mean, std, group)
            torch.testing.assert_close(value, expected[0], rtol=1e-6, atol=1e-9)
        whole, detached = (
            torch.autograd.grad(ThurstoneFidelityLoss(stds="predicted", detach_stds=d)(logits, mean, std, group), logits)[0] for d in (False, True)
        )
        assert not torch.allclose(whole, detached)
