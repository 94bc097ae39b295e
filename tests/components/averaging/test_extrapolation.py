import pytest
import torch
from torch import nn

from components.averaging import NegativeExtrapolation, gradient_cosine, neon
from components.testing.averaging import Data, Net, assert_same, trainer_for


def state(value, dtype=torch.float64):
    return {"weight": torch.full((2, 3), value, dtype=dtype), "count": torch.tensor(int(value * 10))}


class Gaussian(nn.Module):
    """A Gaussian by its mean and the logarithm of its variance; :meth:`forward` is the mean negative log-likelihood."""

    def __init__(self, mean, variance) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(float(mean), dtype=torch.float64))
        self.log_variance = nn.Parameter(torch.tensor(float(variance), dtype=torch.float64).log())

    def forward(self, samples):
        return 0.5 * (self.log_variance + (samples - self.mean) ** 2 / self.log_variance.exp()).mean()

    def sample(self, count, temperature, seed):
        drawn = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return (self.mean + drawn * (temperature * self.log_variance.exp()).sqrt()).detach()

    def tuned(self, samples, steps=20, lr=0.05):
        """A copy after a short fine-tuning on these samples."""
        copy = Gaussian(self.mean.item(), self.log_variance.exp().item())
        optimizer = torch.optim.SGD(copy.parameters(), lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            copy(samples).backward()
            optimizer.step()
        return copy

    def merged(self, degraded, weight):
        model = Gaussian(0, 1)
        model.load_state_dict(neon(self.state_dict(), degraded.state_dict(), weight))
        return model


class TestMerge:
    def test_worked_values(self):
        base, degraded = state(1.0), state(1.2)
        torch.testing.assert_close(neon(base, degraded, 1.0)["weight"], torch.full((2, 3), 0.8, dtype=torch.float64))
        assert_same(neon(base, degraded, 0.0), base)
        assert torch.equal(neon(base, degraded, -1.0)["weight"], degraded["weight"])

    def test_linear_in_its_weight(self):
        base = {"w": torch.randn(5, dtype=torch.float64)}
        degraded = {"w": torch.randn(5, dtype=torch.float64)}
        one, other, middle = (neon(base, degraded, w)["w"] for w in (0.5, 2.5, 1.5))
        torch.testing.assert_close(one + other, 2 * middle)

    def test_counters_are_the_bases_and_inputs_untouched(self):
        base, degraded = state(1.0), state(1.2)
        merged = neon(base, degraded, 2.0)
        assert merged["count"].item() == 10 and merged["count"] is not base["count"]
        merged["weight"].zero_()
        assert base["weight"][0, 0] == 1.0 and degraded["weight"][0, 0] == 1.2

    def test_half_precision(self):
        merged = neon(state(1.0, torch.bfloat16), state(1.0078125, torch.bfloat16), 1.0)["weight"]
        assert merged.dtype == torch.bfloat16 and merged[0, 0] == 0.9921875

    def test_refuses(self):
        with pytest.raises(ValueError, match=r"names that only one of them has, but got \['count'\]"):
            neon(state(1.0), {"weight": torch.zeros(2, 3)}, 1.0)
        with pytest.raises(ValueError, match="the shapes of weight are"):
            neon(state(1.0), state(1.0) | {"weight": torch.zeros(2)}, 1.0)
        with pytest.raises(ValueError, match="weight must be a number"):
            neon(state(1.0), state(1.0), float("nan"))


class TestSelfTraining:
    TRUTH = torch.randn(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 + 1  # N(1, 4)

    def test_a_mode_seeking_sampler_makes_the_merge_wider_and_better(self):
        base = Gaussian(1.0, 3.0)  # underestimates the variance
        degraded = base.tuned(base.sample(2000, temperature=0.5, seed=2))
        assert degraded.log_variance < base.log_variance
        losses = []
        for weight in (0.0, 0.25, 0.5, 1.0):
            merged = base.merged(degraded, weight)
            assert weight == 0 or merged.log_variance > base.log_variance
            losses.append(float(merged(self.TRUTH).detach()))
        assert min(losses[1:]) < losses[0]
        assert float(base(self.TRUTH).detach()) == losses[0]

    def test_a_faithful_sampler_gives_nothing_on_average(self):
        base = Gaussian(1.0, 3.0)
        gains = {1.0: [], 0.5: []}
        for temperature, values in gains.items():
            for seed in range(40):
                degraded = base.tuned(base.sample(500, temperature, seed=seed))
                values.append(float((base(self.TRUTH) - base.merged(degraded, 0.5)(self.TRUTH)).detach()))
        faithful, seeking = (torch.tensor(gains[t]) for t in (1.0, 0.5))
        assert abs(float(faithful.mean())) < 3 * float(faithful.std()) / 40**0.5 + 1e-4
        assert float(seeking.mean()) > 10 * abs(float(faithful.mean()))

    def test_the_cosine_tells_when_it_helps(self):
        for variance, temperature, helps in ((3.0, 0.5, True), (6.0, 0.5, False), (3.0, 1.6, False)):
            base = Gaussian(1.0, variance)
            samples = base.sample(4000, temperature, seed=3)
            cosine = gradient_cosine(base(self.TRUTH), base(samples), base.parameters())
            gain = base(self.TRUTH) - base.merged(base.tuned(samples), 0.25)(self.TRUTH)
            assert bool(cosine < 0) == bool(gain > 0) == helps, (variance, temperature, float(cosine), float(gain))

    def test_cosine_values(self):
        a, b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in ([1.0, 0.0], [2.0, 1.0]))
        assert float(gradient_cosine(a.sum(), -a.sum(), [a])) == pytest.approx(-1)
        assert float(gradient_cosine(a[0] * 1, a.sum(), [a])) == pytest.approx(0.5**0.5)
        assert float(gradient_cosine(a.sum(), b.sum(), [a, b])) == 0  # none in common
        assert float(gradient_cosine(a.sum() * 0, a.sum(), [a])) == 0


class TestInARun:
    @pytest.mark.parametrize("weight", [0.5, 0.0, -1.0, -0.3])
    def test_evaluates_the_merge_of_the_start_and_the_current_weights(self, weight, tmp_path):
        module, start = Net(), Net().state_dict()
        trainer_for([NegativeExtrapolation(weight, buffers="average")], tmp_path).fit(module, datamodule=Data())
        kept = ("memory", "body.1.num_batches_tracked")
        for _, step, seen in module.seen:
            expected = neon(start, module.after[step - 1], weight) | {name: module.after[step - 1][name] for name in kept}
            assert_same(seen, expected)
        assert_same(module.state_dict(), neon(start, module.after[-1], weight) | {name: module.after[-1][name] for name in kept})

    def test_statistics_are_the_current_ones_by_default(self, tmp_path):
        module = Net()
        trainer_for([NegativeExtrapolation(2.0)], tmp_path).fit(module, datamodule=Data())
        assert torch.equal(module.body[1].running_var, module.after[-1]["body.1.running_var"])

    def test_refuses(self):
        with pytest.raises(ValueError, match="weight must be a number"):
            NegativeExtrapolation(float("inf"))
