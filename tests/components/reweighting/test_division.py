import contextlib

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from components.reweighting import ConfidentConsensusDivision
from components.reweighting.division import probability_of_lower


def two_groups(noisy: float = 0.3, count: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(2, count) losses of two heads, and which samples are noisy: theirs are higher."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(count, generator=generator) < noisy
    losses = 0.2 + 0.1 * torch.randn(2, count, generator=generator).abs() + wrong * (0.8 + 0.1 * torch.randn(2, count, generator=generator))
    return losses, wrong


class TestMixture:
    @pytest.mark.parametrize(("iterations", "tolerance", "floor"), [(10, 1e-2, 5e-4), (100, 1e-4, 1e-6), (1, 1e-9, 1e-3)])
    def test_agrees_with_scikit_learn(self, iterations: int, tolerance: float, floor: float) -> None:
        losses = torch.rand(2, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 3
        ours = probability_of_lower(losses, iterations, tolerance, floor)
        for row, likely in zip(losses.numpy(), ours.numpy(), strict=True):
            start = {"means_init": [[row.min()], [row.max()]], "weights_init": [0.5, 0.5], "precisions_init": [[[1 / (row.var() + floor)]]] * 2}
            with np.errstate(all="ignore"), pytest.warns() if iterations == 1 else contextlib.nullcontext():
                mixture = GaussianMixture(2, max_iter=iterations, tol=tolerance, reg_covar=floor, **start).fit(row[:, None])
            expected = mixture.predict_proba(row[:, None])[:, mixture.means_.argmin()]
            np.testing.assert_allclose(likely, expected, atol=1e-9)

    def test_rows_are_apart(self) -> None:
        losses = two_groups()[0].double()
        together = probability_of_lower(losses, 50, 1e-3, 1e-4)
        for row, likely in zip(losses, together, strict=True):
            torch.testing.assert_close(probability_of_lower(row.unsqueeze(0), 50, 1e-3, 1e-4)[0], likely)


class TestDivision:
    def test_finds_the_mismatched(self) -> None:
        losses, wrong = two_groups()
        weights = ConfidentConsensusDivision()(torch.arange(400), losses, 0)
        assert set(weights.tolist()) == {0.0, 1.0}
        assert float((weights == (~wrong).float()).float().mean()) > 0.98

    def test_coins_decide_where_heads_differ_anew_each_epoch(self) -> None:
        clean, noisy = torch.zeros(200), torch.ones(200)
        losses = torch.stack([torch.cat([clean, clean, noisy, noisy]), torch.cat([clean, noisy, clean, noisy])])
        division = ConfidentConsensusDivision()
        drawn = torch.stack([division(torch.arange(800), losses, epoch) for epoch in range(20)])
        assert (drawn[:, :200] == 1).all() and (drawn[:, 600:] == 0).all()
        assert drawn[:, 200:600].mean().item() == pytest.approx(0.5, abs=0.03)
        assert not torch.equal(drawn[0], drawn[1])
        assert torch.equal(ConfidentConsensusDivision()(torch.arange(800), losses, 7), drawn[7]), "a function of the losses, the seed and the epoch"
        assert not torch.equal(ConfidentConsensusDivision(seed=1)(torch.arange(800), losses, 7), drawn[7])

    @pytest.mark.parametrize(("lowest", "believed"), [(0.6, 296), (0.5, 299), (0.0, 149)])
    def test_the_least_likely_hundredth_is_left_out_where_nothing_looks_noisy(self, monkeypatch: pytest.MonkeyPatch, lowest: float, believed: int) -> None:
        likely = torch.linspace(lowest, 1.0, 301)[:300].unsqueeze(0)
        monkeypatch.setattr("components.reweighting.division.probability_of_lower", lambda *_: likely)
        assert int(ConfidentConsensusDivision().clean(torch.rand(1, 300)).sum()) == believed

    def test_new_losses_in_the_same_tensor_are_seen(self) -> None:
        losses, _ = two_groups()
        division = ConfidentConsensusDivision()
        before = division(torch.arange(400), losses, 3)
        losses.copy_(losses.flip(1))
        assert not torch.equal(division(torch.arange(400), losses, 3), before)

    def test_bad_input(self) -> None:
        for wrong in ({"iterations": 0}, {"tolerance": 0.0}, {"variance_floor": 0.0}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                ConfidentConsensusDivision(**wrong)
        with pytest.raises(ValueError, match="training_losses must have one row a head"):
            ConfidentConsensusDivision()(torch.arange(4), torch.rand(4), 0)
