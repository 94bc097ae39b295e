"""Exponential, tail and full averages of SGD on a quadratic, against closed forms and each other (arXiv:2502.14123); EMA's rule for batch sizes."""

import pytest
import torch

from components.averaging import EMA, SWA, PolyakAverage, SwitchEMA, TailAverage, averaged
from components.schedules import Linear
from components.schedules.scaling import scaled_ema_decay
from components.testing.averaging import Data, Net, trainer_for

STEPS, DIMENSIONS = 100, 200


def ema(decay, **options):
    return EMA(decay=decay, decay_warmup=False, **{"begin": "initial"} | options)


def bias(alpha, rho, steps):
    """Of the mean recursion: what is left of a start at 1 after averaging."""
    return alpha**steps + (1 - alpha) * rho * (alpha**steps - rho**steps) / (alpha - rho)


def descent(rho, steps=STEPS):
    """(T + 1, d): noise-free gradient descent, each coordinate shrinking by its rho."""
    return rho ** torch.arange(steps + 1, dtype=torch.float64)[:, None]


def regression(decay_of_spectrum, sigma, seeds=200, rate=0.2, start=0.0, steps=STEPS):
    """(T + 1, seeds, d): one-pass SGD with x ~ N(0, H), H = diag(i^-a), y = sigma xi, from ``start`` times a vector of ones; w* = 0."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, DIMENSIONS + 1, dtype=torch.float64) ** -decay_of_spectrum
    w = torch.full((seeds, DIMENSIONS), start, dtype=torch.float64)
    iterates = [w]
    rate = rate / float(spectrum.sum())
    for _ in range(steps):
        x = torch.randn(seeds, DIMENSIONS, generator=generator, dtype=torch.float64) * spectrum.sqrt()
        y = sigma * torch.randn(seeds, generator=generator, dtype=torch.float64)
        w = w - rate * ((w * x).sum(1) - y)[:, None] * x
        iterates.append(w)
    return torch.stack(iterates), spectrum


def risk(w, spectrum):
    return 0.5 * (w.square() * spectrum).sum(-1)


class TestExponential:
    def test_decay_zero_is_the_last_iterate_and_constant_iterates_stay(self):
        iterates = torch.randn(11, 4, dtype=torch.float64)
        assert torch.equal(averaged(iterates, ema(0.0)), iterates)
        constant = torch.ones(11, 4, dtype=torch.float64)
        for average in (ema(0.9), EMA(), SWA(0, 1), TailAverage(), PolyakAverage(2.0, initial=True), EMA(0.9, False, begin="zero")):
            torch.testing.assert_close(averaged(constant, average), constant, rtol=0, atol=1e-15)

    def test_weights_sum_to_one_and_are_what_they_should(self):
        units = torch.eye(STEPS + 1, dtype=torch.float64)  # iterate t is the t-th unit vector: the average shows its weights
        weights = averaged(units, ema(0.9))[-1]
        expected = torch.tensor([0.9**STEPS, *[0.1 * 0.9 ** (STEPS - t) for t in range(1, STEPS + 1)]], dtype=torch.float64)
        torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-15)
        for average in (ema(0.9), EMA(), EMA(0.9, False, begin="zero"), TailAverage(), PolyakAverage(1.5), SWA(0.5, 3)):
            assert float(averaged(units, average)[-1].sum()) == pytest.approx(1, abs=1e-12)

    @pytest.mark.parametrize("alpha", [0.5, 0.9, 0.99])
    def test_closed_form_of_the_bias(self, alpha):
        rho = 1 - 0.5 * torch.arange(1, DIMENSIONS + 1, dtype=torch.float64) ** -1.0
        measured = averaged(descent(rho), ema(alpha))
        for steps in (1, 10, STEPS):
            there = (rho - alpha).abs() > 1e-6  # the formula has a removable pole there
            torch.testing.assert_close(measured[steps][there], bias(alpha, rho, steps)[there], rtol=1e-10, atol=1e-12)

    def test_begin_zero_is_corrected_for_it(self):
        iterates, total = torch.randn(31, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        results = averaged(iterates, EMA(0.9, False, begin="zero"))
        for step in range(1, 31):
            total = 0.9 * total + 0.1 * iterates[step]
            torch.testing.assert_close(results[step], total / (1 - 0.9**step))
        mean = averaged(iterates, EMA(1.0, False, begin="zero"))[-1]  # the limit of an endless memory: the mean
        torch.testing.assert_close(mean, iterates[1:].mean(0))


class TestTailAndFull:
    def test_worked_weights(self):
        units = torch.eye(9, dtype=torch.float64)  # the start and 8 steps
        assert averaged(units, TailAverage(last=4))[-1].tolist() == [0, 0, 0, 0, 0, *[0.25] * 4]
        assert averaged(units, TailAverage(last=0.5, every_n_steps=2))[-1].tolist() == [0, 0, 0, 0, 0, 0, 0.5, 0, 0.5]
        assert averaged(units, TailAverage(last=100))[-1].tolist() == pytest.approx([0, *[1 / 8] * 8])
        assert averaged(units, TailAverage(last=4))[4].tolist() == units[4].tolist()  # before the tail
        assert averaged(units, PolyakAverage())[-1].tolist() == pytest.approx([0, *[1 / 8] * 8])
        assert averaged(units, PolyakAverage(initial=True))[-1].tolist() == pytest.approx([1 / 9] * 9)
        assert averaged(units, PolyakAverage(power=1))[-1].tolist() == pytest.approx([t / 36 for t in range(9)])
        assert averaged(units, PolyakAverage(start=6, initial=True))[-1].tolist() == pytest.approx([0] * 6 + [1 / 3] * 3)

    def test_in_a_run(self, tmp_path):
        module = Net()
        trainer_for([TailAverage(last=0.25)], tmp_path).fit(module, datamodule=Data())
        expected = torch.stack([a["head.weight"] for a in module.after[18:]]).mean(0)
        torch.testing.assert_close(module.head.weight.detach(), expected)
        start, full = Net(), Net()
        trainer_for([PolyakAverage(initial=True)], tmp_path).fit(full, datamodule=Data())
        expected = torch.stack([start.head.weight.detach(), *[a["head.weight"] for a in full.after]]).mean(0)
        torch.testing.assert_close(full.head.weight.detach(), expected)


class TestTheStudy:
    def test_bias_of_the_exponential_average_falls_exponentially_of_the_full_one_like_one_over_t(self):
        rho, alpha = torch.tensor([0.5, 0.8], dtype=torch.float64), 0.9
        iterates = descent(rho, 400)
        exponential, full, tail = (averaged(iterates, a) for a in (ema(alpha), PolyakAverage(initial=True), TailAverage(0.5)))
        for steps in (100, 200):
            torch.testing.assert_close(exponential[2 * steps] / exponential[steps], torch.full((2,), alpha**steps, dtype=torch.float64), rtol=1e-4, atol=0)
            torch.testing.assert_close(full[2 * steps] / full[steps], torch.full((2,), 0.5, dtype=torch.float64), rtol=2e-2, atol=0)
        assert bool((tail[-1] < 1e-15).all()) and bool((full[-1] > 1e-3).all())

    @pytest.mark.parametrize("spectrum", [1.0, 2.0])
    def test_variance_of_the_exponential_average_is_below_the_last_iterates_for_nearly_every_seed(self, spectrum):
        iterates, eigenvalues = regression(spectrum, sigma=1.0)
        last = risk(iterates[-1], eigenvalues)
        for average in (ema(0.9), TailAverage(), PolyakAverage(initial=True)):
            gain = last - risk(averaged(iterates, average)[-1], eigenvalues)
            assert float(gain.mean()) > 4 * float(gain.std()) / len(gain) ** 0.5  # paired over the seeds

    @pytest.mark.parametrize("spectrum", [1.0, 2.0])
    def test_bias_in_the_regression_is_least_for_the_last_iterate_and_most_for_the_full_average(self, spectrum):
        iterates, eigenvalues = regression(spectrum, sigma=0.0, start=1.0)
        averages = [ema(0.0), ema(0.9), TailAverage(0.5), PolyakAverage(initial=True)]
        biases = [float(risk(averaged(iterates, a)[-1], eigenvalues).mean()) for a in averages]
        assert biases == sorted(biases) and biases[3] > 1.15 * biases[1]


class TestBatchScale:
    def test_one_scaled_update_towards_a_constant_is_kappa_unscaled_ones(self):
        kappa, decay = 8, 0.99
        small = averaged(torch.tensor([0.0, *[1.0] * 32], dtype=torch.float64), ema(decay))
        large = averaged(torch.tensor([0.0, *[1.0] * 4], dtype=torch.float64), ema(decay, reference_batch=32, batch_size=32 * kappa))
        torch.testing.assert_close(large, small[::kappa], rtol=1e-13, atol=0)
        assert 1 - ema(decay, reference_batch=32, batch_size=256).share(1, 0) == pytest.approx(0.922745, abs=1e-6)
        assert 1 - ema(0.9999, reference_batch=16, batch_size=4096).share(1, 0) == pytest.approx(0.974724, abs=1e-6)

    def test_fixed_points_and_the_same_batch(self):
        for batch in (32, 256, 8):
            for decay in (0.0, 1.0):
                assert ema(decay, reference_batch=32, batch_size=batch).share(3, 0) == 1 - decay
        assert EMA(0.99, reference_batch=32, batch_size=32).share(7, 0) == EMA(0.99).share(7, 0)
        assert ema(0.99, reference_batch=32, batch_size=8).share(3, 0) == pytest.approx(1 - scaled_ema_decay(0.99, 0.25))

    def test_noisy_quadratic_at_equal_samples(self):
        # SGD with the linear rule: rate and batch times 8; the averages' paths agree with the decay's rule and drift without
        kappa, samples, chains, decay, rate = 8, 800, 500, 0.99, 0.002
        generator = torch.Generator().manual_seed(0)
        paths = {}
        for scale in (1, kappa):
            theta = torch.full((chains,), 10.0, dtype=torch.float64)
            iterates = [theta]
            for _ in range(samples // scale):
                theta = theta - scale * rate * (theta + torch.randn(chains, generator=generator, dtype=torch.float64) / scale**0.5)
                iterates.append(theta)
            paths[scale] = torch.stack(iterates)
        reference = averaged(paths[1], ema(decay)).mean(1)[::kappa]
        ruled = averaged(paths[kappa], ema(decay, reference_batch=32, batch_size=32 * kappa)).mean(1)
        unruled = averaged(paths[kappa], ema(decay)).mean(1)
        assert float((ruled - reference).abs().max()) < 0.1
        assert float((unruled - reference).abs().max()) > 1.0

    def test_warm_up_counts_in_samples(self):
        small, large = EMA(0.9999), EMA(0.9999, reference_batch=32, batch_size=320)
        kept = 1.0
        for count in range(100, 110):
            kept *= 1 - small.share(count, 0)
        assert 1 - large.share(10, 0) == pytest.approx(kept, rel=0.05)

    def test_in_a_run_accumulated_batches_count_together(self, tmp_path):
        average = EMA(0.9, reference_batch=8, batch_size=8)
        trainer_for([average], tmp_path, accumulate_grad_batches=2).fit(Net(), datamodule=Data())
        assert average.kappa == 2
        assert average.share(10**9, 0) == pytest.approx(1 - 0.81)


@pytest.mark.parametrize(
    ("make_bad", "message"),
    [
        (lambda: EMA(begin="last"), "begin must be one of first, initial, zero"),
        (lambda: EMA(begin="zero"), "begin=zero needs a constant decay"),
        (lambda: EMA(Linear(), False, begin="zero"), "begin=zero needs a constant decay"),
        (lambda: EMA(reference_batch=0, batch_size=4), "reference_batch must be >= 1"),
        (lambda: EMA(reference_batch=32), "reference_batch needs batch_size"),
        (lambda: TailAverage(last=0), "last must be > 0"),
        (lambda: TailAverage(last=1.5), "last as a fraction"),
        (lambda: PolyakAverage(power=-1), "power must be a number >= 0"),
        (lambda: averaged(torch.zeros(1, 2), EMA()), "iterates must be at least two"),
        (lambda: averaged(torch.zeros(3, 2), SWA()), r"averaged\(\) knows no epochs"),
        (lambda: averaged(torch.zeros(3, 2), SwitchEMA()), r"averaged\(\) takes EMA"),
    ],
)
def test_refuses(make_bad, message):
    with pytest.raises(ValueError, match=message):
        make_bad()
