import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from components.averaging import AsymptoteLaw, LogitAverage, average_logits
from components.models import MLP

PARAMETERS = AsymptoteLaw(scale=0.05, exponent=1.02, asymptote=3.43)  # by billions of parameters, 200M tokens
MEMBERS = AsymptoteLaw(scale=0.25, exponent=1.02, asymptote=3.34)  # by members of 300M parameters


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(4, 32, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


class TestAverageLogits:
    def test_worked_value(self):
        # members (0.8, 0.2) and (0.5, 0.5): the geometric means sqrt(.4), sqrt(.1) -> 2/3, 1/3
        members = torch.tensor([[[0.8, 0.2]], [[0.5, 0.5]]], dtype=torch.float64).log()
        torch.testing.assert_close(average_logits(members).exp(), torch.tensor([[2 / 3, 1 / 3]], dtype=torch.float64))

    def test_is_the_softmax_of_the_mean_logits(self, logits):
        torch.testing.assert_close(average_logits(logits).exp(), logits.mean(0).softmax(1))
        shifted = logits + torch.arange(4.0).view(4, 1, 1)  # a member's constant means nothing
        torch.testing.assert_close(average_logits(shifted), average_logits(logits))

    def test_identical_members_are_the_member(self, logits):
        same = logits[:1].expand(5, -1, -1)
        torch.testing.assert_close(average_logits(same), logits[0].log_softmax(1))

    def test_log_loss_is_at_most_the_members_mean_for_every_sample(self, logits):
        for target in range(7):
            members = -logits.log_softmax(2)[:, :, target]
            assert bool((-average_logits(logits)[:, target] <= members.mean(0) + 1e-12).all())
            weights = [0.5, 0.1, 0.4, 0.0]
            mean = (members * torch.tensor(weights, dtype=torch.float64).view(4, 1)).sum(0)
            assert bool((-average_logits(logits, weights)[:, target] <= mean + 1e-12).all())

    def test_weights(self, logits):
        torch.testing.assert_close(average_logits(logits, [2, 2, 2, 2]), average_logits(logits))
        torch.testing.assert_close(average_logits(logits, [0, 1, 0, 0]), logits[1].log_softmax(1))

    def test_segmentation_shapes_and_large_logits(self):
        pixels = torch.randn(3, 2, 4, 5, 6) * 1e4
        result = average_logits(pixels)
        assert result.shape == (2, 4, 5, 6) and bool(torch.isfinite(result).all())
        torch.testing.assert_close(result.exp().sum(1), torch.ones(2, 5, 6))

    @pytest.mark.parametrize("weights", [[1, 1], [1, 1, 1, -1], [0, 0, 0, 0], [1, 1, 1, math.nan]])
    def test_refuses_weights(self, logits, weights):
        with pytest.raises(ValueError, match="weights must be 4 numbers >= 0"):
            average_logits(logits, weights)
        with pytest.raises(ValueError, match="logits must be"):
            average_logits(logits[0, 0])


class TestLogitAverage:
    def test_averages_its_members(self):
        torch.manual_seed(0)
        members = [MLP([5], 3, hidden=[8]) for _ in range(3)]
        ensemble, inputs = LogitAverage(members), torch.randn(6, 5)
        output = ensemble(inputs)
        expected = torch.stack([member(inputs).output for member in members]).mean(0).log_softmax(1)
        torch.testing.assert_close(output.output, expected)
        assert output.features.shape == (6, 24)
        assert len(list(ensemble.parameters())) == 3 * len(list(members[0].parameters()))

    def test_members_without_features(self):
        ensemble = LogitAverage([nn.Linear(5, 3), nn.Linear(5, 3)], weights=[1, 3])
        assert ensemble(torch.randn(2, 5)).features is None and ensemble.weights == [0.25, 0.75]
        with pytest.raises(ValueError, match="at least one model"):
            LogitAverage([])

    def test_learns_as_one_model_and_beats_its_members_mean(self):
        torch.manual_seed(0)
        inputs, target = torch.randn(200, 5), torch.randint(0, 3, (200,))
        members = [MLP([5], 3, hidden=[8]) for _ in range(3)]
        losses = [float(nn.functional.cross_entropy(m(inputs).output, target).detach()) for m in members]
        ensemble = LogitAverage(members)
        assert float(nn.functional.cross_entropy(ensemble(inputs).output, target).detach()) < float(np.mean(losses))
        nn.functional.cross_entropy(ensemble(inputs).output, target).backward()
        assert all(p.grad is not None for p in ensemble.parameters())


class TestAsymptoteLaw:
    def test_published_values(self):
        assert PARAMETERS.predict(1) == pytest.approx(3.48, abs=1e-9)
        assert PARAMETERS.predict(0.3) == pytest.approx(3.6007, abs=5e-5)
        assert MEMBERS.predict([1, 2, 8]) == pytest.approx([3.59, 3.46328, 3.36998], abs=5e-6)

    @pytest.mark.parametrize("law", [PARAMETERS, MEMBERS, AsymptoteLaw(20.0, 0.3, 1.7), AsymptoteLaw(2.0, 0.5, 0.0)])
    def test_recovers_its_constants_from_points_without_noise(self, law):
        for points in ([0.15, 0.3, 0.6, 1.4], [1, 2, 3, 4, 5, 8], [2e8, 4e8, 8e8, 1.6e9]):
            if law.exponent > 1 and points[0] > 1e6:
                continue  # nothing is left of A / x^a there
            found = AsymptoteLaw.fit(points, law.predict(points))
            assert found.asymptote == pytest.approx(law.asymptote, abs=1e-4)
            assert found.exponent == pytest.approx(law.exponent, abs=1e-4) and found.scale == pytest.approx(law.scale, rel=1e-4)

    def test_the_inverse(self):
        for data in (0.1, 1.0, 17.0, 1e6):
            assert MEMBERS.needed(MEMBERS.predict(data)) == pytest.approx(data, rel=1e-6)
        assert MEMBERS.needed(3.34) == MEMBERS.needed(3.0) == math.inf
        assert MEMBERS.data_efficiency(2.0, MEMBERS.predict(10.34)) == pytest.approx(5.17)
        assert MEMBERS.data_efficiency(2.0, 3.3) == math.inf

    def test_interval_holds_the_truth_and_narrows_with_less_noise(self):
        points = np.array([1, 1.5, 2, 3, 4, 6, 8, 12, 16])
        widths = []
        for noise in (1e-2, 1e-3):
            losses = MEMBERS.predict(points) + noise * np.random.default_rng(3).normal(size=len(points))
            law = AsymptoteLaw.fit(points, losses)
            low, high = law.interval(points, losses, draws=60)
            assert low <= 3.34 <= high and low <= law.asymptote <= high
            assert (low, high) == law.interval(points, losses, draws=60)
            widths.append(high - low)
        assert widths[1] < 0.3 * widths[0]

    @pytest.mark.parametrize(
        ("x", "losses", "message"),
        [
            ([1, 2], [3, 2], "at least three different values"),
            ([1, 2, 2], [3, 2, 2], "at least three different values"),
            ([1, 2, 3], [1, 2, 3], "losses must fall"),
            ([0, 1, 2], [3, 2, 1], "x must be finite and > 0"),
            ([1, 2, 3], [3, float("nan"), 1], "losses must be finite"),
            ([1, 2, 3], [3, 2], "two lists of the same length"),
        ],
    )
    def test_refuses(self, x, losses, message):
        with pytest.raises(ValueError, match=message):
            AsymptoteLaw.fit(x, losses)

    def test_refuses_constants(self):
        for bad in ({"scale": 0.0}, {"exponent": -1.0}, {"asymptote": -0.1}):
            with pytest.raises(ValueError, match=next(iter(bad))):
                AsymptoteLaw(**({"scale": 1.0, "exponent": 1.0, "asymptote": 1.0} | bad))


class TestWeightDecay:
    """Why the laws want tuned members: a character model with more features than samples, its output layer solved in closed form."""

    STRENGTHS = (1e-4, 1e-2, 1e-1, 1.0, 10.0, 100.0)

    def losses(self, seed):
        """(widths, strengths): squared error on held-out characters of a ridge regression on random features of the six before."""
        text = torch.tensor(list(inspect.getsource(inspect).encode())[:30_000]).clamp(max=127)
        generator = torch.Generator().manual_seed(seed)
        embedding = torch.randn(128, 16, generator=generator, dtype=torch.float64)
        hidden = torch.randn(96, 800, generator=generator, dtype=torch.float64) * 2 / 96**0.5
        places = [torch.randint(low, high, (count,), generator=generator) for low, high, count in ((10, 15_000, 200), (16_000, 29_000, 1500))]
        inputs = [torch.cat([embedding[text[p - back]] for back in range(1, 7)], 1) @ hidden for p in places]
        target, wanted = (nn.functional.one_hot(text[p], 128).double() for p in places)
        rows = []
        for width in (25, 50, 100, 200, 400, 800):
            train, test = (torch.relu(x[:, :width]) / width**0.5 for x in inputs)
            left, values, right = torch.linalg.svd(train, full_matrices=False)
            solved = left.mT @ target
            outputs = [test @ (right.mT @ ((values / (values**2 + s))[:, None] * solved)) for s in self.STRENGTHS]
            rows.append([float((o - wanted).square().sum(1).mean()) for o in outputs])
        return rows

    def test_loss_falls_with_width_only_with_a_tuned_one_which_is_far_above_the_usual(self):
        table = np.mean([self.losses(seed) for seed in range(3)], axis=0)
        tuned = table.min(1)
        assert all(wider < narrower for narrower, wider in itertools.pairwise(tuned)), tuned
        weak = table[:, 0]
        assert weak.argmax() == 3 and weak[3] > 2 * weak[0]  # worst where there are as many features as samples
        assert all(self.STRENGTHS[best] >= 30 * 1e-2 for best in table.argmin(1)[1:])
