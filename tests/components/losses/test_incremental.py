import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from components.losses import DistributionBoundLoss

D = torch.float64


def gaussians(count: int = 6, classes: int = 4, size: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(count, size, size, generator=generator, dtype=D)
    return {
        "feature_means": torch.randn(count, size, generator=generator, dtype=D),
        "feature_covariances": root @ root.mT / size,
        "class_target": torch.arange(count) % classes,
        "output_weight": torch.randn(classes, size, generator=generator, dtype=D).requires_grad_(),
        "output_bias": torch.randn(classes, generator=generator, dtype=D).requires_grad_(),
        "is_old": (torch.arange(count) < 3).to(D),
    }


def two_unit_classes(spread: float = 0.5) -> dict[str, Tensor]:
    """K = D = 2, W = I, means = I, covariances spread · I, no bias, both classes old."""
    eye = torch.eye(2, dtype=D)
    return {
        "feature_means": eye,
        "feature_covariances": spread * eye.expand(2, 2, 2),
        "class_target": torch.arange(2),
        "output_weight": eye,
        "output_bias": torch.zeros(2, dtype=D),
        "is_old": torch.ones(2, dtype=D),
    }


def double_loop(enlarge: float, g: dict[str, Tensor]) -> Tensor:
    """The formula, Gaussian by Gaussian and class by class."""
    values = []
    for mean, covariance, k, old in zip(g["feature_means"], g["feature_covariances"], g["class_target"].tolist(), g["is_old"], strict=True):
        covariance = covariance + enlarge * old * torch.diag(covariance.diagonal())
        terms = []
        for j in range(len(g["output_bias"])):
            v = g["output_weight"][j] - g["output_weight"][k]
            terms.append((v @ mean + 0.5 * v @ covariance @ v + g["output_bias"][j] - g["output_bias"][k]).exp())
        values.append(torch.stack(terms).sum().log())
    return torch.stack(values)


class TestDistributionBound:
    @pytest.mark.parametrize(("enlarge", "expected"), [(0.0, 0.474077), (0.4, 0.554355)])
    def test_worked_value(self, enlarge: float, expected: float) -> None:
        assert DistributionBoundLoss(enlarge)(**two_unit_classes()).item() == pytest.approx(expected, abs=1e-6)
        margin = {0.0: 0.5, 0.4: 0.3}[enlarge]
        assert expected == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-6)

    @pytest.mark.parametrize("enlarge", [0.0, 0.7])
    def test_agrees_with_the_double_loop_in_value_and_gradient(self, enlarge: float) -> None:
        g = gaussians()
        ours, expected = DistributionBoundLoss(enlarge, reduction="none")(**g), double_loop(enlarge, g)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
        for name in ("output_weight", "output_bias"):
            torch.testing.assert_close(*(torch.autograd.grad(v.sum(), g[name], retain_graph=True)[0] for v in (ours, expected)))

    def test_without_spread_it_is_cross_entropy_on_the_means(self) -> None:
        g = gaussians()
        g["feature_covariances"] = torch.zeros_like(g["feature_covariances"])
        logits = g["feature_means"] @ g["output_weight"].T + g["output_bias"]
        torch.testing.assert_close(DistributionBoundLoss()(**g), cross_entropy(logits, g["class_target"]))

    def test_lies_above_the_expected_cross_entropy(self) -> None:
        """0.406856 is the expectation by quadrature; the bound is 0.474077."""
        g = two_unit_classes()
        x = g["feature_means"].repeat_interleave(100_000, 0)
        x = x + 0.5**0.5 * torch.randn(x.shape, dtype=D, generator=torch.Generator().manual_seed(1))
        sampled = cross_entropy(x, torch.arange(2).repeat_interleave(100_000))
        assert sampled.item() == pytest.approx(0.406856, abs=0.004)
        assert sampled < DistributionBoundLoss()(**g)
        nodes, weights = (torch.tensor(a) for a in __import__("numpy").polynomial.hermite_e.hermegauss(80))  # x_2 - x_1 ~ N(-1, 1)
        quadrature = (weights * torch.nn.functional.softplus(nodes - 1)).sum() / math.sqrt(2 * math.pi)
        assert quadrature.item() == pytest.approx(0.406856, abs=1e-6)

    def test_enlarging_increases_it_unless_all_weights_are_equal(self) -> None:
        g = gaussians()
        small, large = (DistributionBoundLoss(enlarge, reduction="none")(**g) for enlarge in (0.1, 0.2))
        old = g["is_old"] == 1
        assert (large > small)[old].all() and torch.equal(large[~old], small[~old])
        g["output_weight"] = torch.ones_like(g["output_weight"])
        assert torch.equal(DistributionBoundLoss(0.5)(**g), DistributionBoundLoss(0.0)(**g))

    def test_is_a_margin_softmax(self) -> None:
        """Cross-entropy of logits to which every wrong class has its margin added."""
        g = gaussians()
        apart = g["output_weight"] - g["output_weight"][g["class_target"]].unsqueeze(1)
        variances = g["feature_covariances"].diagonal(dim1=1, dim2=2)
        margins = 0.5 * torch.einsum("mcd,mde,mce->mc", apart, g["feature_covariances"], apart)
        margins = margins + 0.5 * 0.3 * g["is_old"].unsqueeze(1) * torch.einsum("mcd,md->mc", apart.square(), variances)
        logits = g["feature_means"] @ g["output_weight"].T + g["output_bias"] + margins
        torch.testing.assert_close(DistributionBoundLoss(0.3)(**g), cross_entropy(logits, g["class_target"]))

    def test_order_of_classes_does_not_matter(self) -> None:
        g, order = gaussians(), torch.tensor([2, 0, 3, 1])
        permuted = g | {"output_weight": g["output_weight"][order], "output_bias": g["output_bias"][order], "class_target": order.argsort()[g["class_target"]]}
        torch.testing.assert_close(DistributionBoundLoss(0.5)(**permuted), DistributionBoundLoss(0.5)(**g))

    def test_takes_variances_for_diagonal_covariances(self) -> None:
        g = gaussians()
        variances = g["feature_covariances"].diagonal(dim1=1, dim2=2)
        diagonal = DistributionBoundLoss(0.5)(**g | {"feature_covariances": torch.diag_embed(variances)})
        torch.testing.assert_close(DistributionBoundLoss(0.5)(**g | {"feature_covariances": variances}), diagonal)

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="enlarge must be >= 0, but got -1"):
            DistributionBoundLoss(-1)
        g, loss = gaussians(), DistributionBoundLoss()
        for name, wrong in {
            "feature_means": g["feature_means"][0],
            "output_bias": g["output_bias"][:-1],
            "class_target": g["class_target"] + 3,
            "is_old": g["is_old"].unsqueeze(1),
        }.items():
            with pytest.raises(ValueError, match=rf"\b{name}\b"):
                loss(**g | {name: wrong})
        with pytest.raises(ValueError, match=r"class_target must hold classes in \[0, 4\), but got -1"):
            loss(**g | {"class_target": g["class_target"] - 1})
