import itertools

import pytest
import torch

from components.averaging.aggregation import (
    RULES,
    centred_average,
    centred_clipping,
    coordinate_median,
    flag,
    flag_subspace,
    geometric_median,
    krum,
    mean,
    mixing,
    multi_krum,
    nearest_neighbour_average,
    trimmed_mean,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size, seed=1):
    return torch.linalg.qr(randn(size, size, seed=seed)).Q


@pytest.fixture
def vectors():
    return randn(9, 6) + 2


def close(left, right, tolerance=1e-9):
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", RULES)
class TestEveryRule:
    def test_order_of_the_workers_means_nothing(self, name, vectors):
        order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
        close(RULES[name](vectors[order], 2), RULES[name](vectors, 2))

    def test_equal_vectors_give_that_vector(self, name):
        same = randn(1, 6).expand(9, 6)
        close(RULES[name](same, 2), same[0])

    def test_input_is_untouched_and_float32_stays(self, name, vectors):
        single = vectors.float()
        before = single.clone()
        assert RULES[name](single, 2).dtype == torch.float32 and torch.equal(single, before)

    def test_agrees_with_the_mean_or_a_middle_of_honest_ones_without_faults(self, name):
        tight = randn(1, 6) + 1e-3 * randn(9, 6, seed=4)
        assert float((RULES[name](tight, 2) - tight.mean(0)).norm()) < 5e-3

    def test_withstands_two_far_away_workers_unless_it_is_the_mean(self, name):
        honest = torch.ones(7, 6, dtype=torch.float64) + 0.1 * randn(7, 6)
        attacked = torch.cat([honest, 1e3 * randn(2, 6, seed=5)])
        result = RULES[name](attacked, 2)
        cosine = float(torch.nn.functional.cosine_similarity(result, honest.mean(0), dim=0))
        assert (cosine < 0.9) if name == "mean" else (cosine > 0.95), cosine

    def test_refuses(self, name, vectors):
        with pytest.raises(ValueError, match="faulty must be"):
            RULES[name](vectors, 5)
        with pytest.raises(ValueError, match="faulty must be"):
            RULES[name](vectors, -1)
        with pytest.raises(ValueError, match="vectors must be"):
            RULES[name](vectors[0], 0)

    @pytest.mark.parametrize("shift", [1.0, 1e3])
    def test_translation(self, name, vectors, shift):
        moved = RULES[name](vectors + shift, 2) - shift
        if name != "flag":  # directions have an origin
            close(moved, RULES[name](vectors, 2), 1e-6)


class TestBaselines:
    COLUMN = torch.tensor([[1.0], [2.0], [3.0], [4.0], [100.0]], dtype=torch.float64)

    def test_worked_values(self):
        assert mean(self.COLUMN).item() == 22
        assert coordinate_median(self.COLUMN).item() == 3 and coordinate_median(self.COLUMN[:4]).item() == 2.5
        assert trimmed_mean(self.COLUMN, 1).item() == 3 and trimmed_mean(self.COLUMN, 2).item() == 3
        assert trimmed_mean(self.COLUMN, 0).item() == 22
        assert geometric_median(self.COLUMN).item() == pytest.approx(3, abs=1e-4)  # on a line: the median
        # krum, f = 1: sums of squares to the 2 nearest are 5, 2, 2, 5, … -> the first of the two least, 2
        assert krum(self.COLUMN, 1).item() == 2
        assert multi_krum(self.COLUMN, 1, chosen=2).item() == 2.5 and multi_krum(self.COLUMN, 1).item() == 2.5
        assert centred_average(self.COLUMN, 1).item() == 2.5
        assert centred_average(self.COLUMN, 1, pivot=torch.tensor([90.0], dtype=torch.float64)).item() == 109 / 4

    def test_geometric_median_is_where_the_unit_vectors_cancel(self, vectors):
        point = geometric_median(vectors, iterations=1000)
        assert float(torch.nn.functional.normalize(vectors - point, dim=1).sum(0).norm()) < 1e-6
        corners = torch.tensor([[1.0, 0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]], dtype=torch.float64)
        close(geometric_median(corners), torch.zeros(2, dtype=torch.float64), 1e-9)
        repeated = torch.cat([corners, corners[:1], corners[:1]])  # more than half of the weight at one point
        close(geometric_median(repeated), corners[0], 1e-4)

    def test_a_wide_clipping_radius_is_the_mean(self, vectors):
        close(centred_clipping(vectors, radius=1e6), vectors.mean(0))
        with pytest.raises(ValueError, match="radius"):
            centred_clipping(vectors, radius=0)

    def test_krum_needs_enough_workers(self, vectors):
        with pytest.raises(ValueError, match=r"at least 2 f \+ 3 workers, 11 for f = 4, but got 9"):
            krum(vectors, 4)
        with pytest.raises(ValueError, match="chosen must be"):
            multi_krum(vectors, 2, chosen=0)


class TestNearestNeighbourAverage:
    def test_worked_value(self):
        values = torch.tensor([[0.0], [0.1], [0.2], [10.0]], dtype=torch.float64)
        result = nearest_neighbour_average(values, 1)
        assert result[0].item() == pytest.approx(0.1)
        assert result[3].item() == pytest.approx((10 + 0.2 + 0.1) / 3)

    def test_no_faults_is_the_mean_of_what_was_received(self, vectors):
        close(nearest_neighbour_average(vectors, 0), vectors.mean(0).expand(9, 6))
        received = torch.rand(9, 9, generator=torch.Generator().manual_seed(0)) < 0.5
        result = nearest_neighbour_average(vectors, 0, received)
        for worker in range(9):
            there = received[worker].clone()
            there[worker] = True
            close(result[worker], vectors[there].mean(0))

    def test_is_the_definition(self, vectors):
        result = nearest_neighbour_average(vectors, 3)
        for worker in range(9):
            nearest = sorted(range(9), key=lambda other: float((vectors[other] - vectors[worker]).norm()))[:6]
            close(result[worker], vectors[nearest].mean(0))

    def test_translation_rotation_and_permutation(self, vectors):
        result = nearest_neighbour_average(vectors, 2)
        close(nearest_neighbour_average(vectors + 7, 2), result + 7)
        turn = rotation(6)
        close(nearest_neighbour_average(vectors @ turn, 2), result @ turn)
        order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
        close(nearest_neighbour_average(vectors[order], 2), result[order])

    def test_its_own_counts_even_among_equals(self):
        result = nearest_neighbour_average(torch.tensor([[1.0], [1.0], [1.0], [5.0], [6.0]]), 2)
        assert result[:3].flatten().tolist() == [1, 1, 1]

    def test_mixing_contracts_the_honest(self, vectors):
        alpha, drift = mixing(vectors, nearest_neighbour_average(vectors, 1))
        assert 0 < alpha < 0.5 and 0 <= drift < 0.1
        assert mixing(vectors, vectors) == (1, 0)
        assert mixing(vectors, nearest_neighbour_average(vectors, 0)) == pytest.approx((0, 0), abs=1e-20)

    def test_refuses(self, vectors):
        with pytest.raises(ValueError, match="more than f = 2 vectors"):
            nearest_neighbour_average(vectors, 2, torch.zeros(9, 9, dtype=torch.bool))
        with pytest.raises(ValueError, match="received must have the shape"):
            nearest_neighbour_average(vectors, 2, torch.ones(3, 3, dtype=torch.bool))


class TestFlag:
    EXAMPLE = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)

    def test_worked_value_projects_the_outlier_out(self):
        close(flag(self.EXAMPLE, 1, rank=1, form="code"), torch.tensor([2.0, 0.0], dtype=torch.float64))
        close(flag(self.EXAMPLE, 1, rank=1), torch.tensor([2 / 3, 0.0], dtype=torch.float64))

    def test_the_worked_value_depends_on_the_start(self):
        outlier = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        close(flag(self.EXAMPLE, 1, rank=1, form="code", start=outlier), torch.tensor([0.0, 1.0], dtype=torch.float64), 1e-3)

    def test_full_rank_is_the_mean(self, vectors):
        for many in (vectors, randn(9, 40), randn(9, 3)):  # fewer and more dimensions than workers
            close(flag(many, rank=9), many.mean(0), 1e-7)

    @pytest.mark.parametrize("rank", [1, 3, 9])
    def test_equal_vectors_for_any_rank(self, rank):
        same = randn(1, 6).expand(9, 6)
        close(flag(same, rank=rank), same[0])

    @pytest.mark.parametrize("pairwise", [0.0, 2.0])
    def test_basis_is_orthonormal_and_the_objective_falls(self, pairwise):
        columns, coefficients, objectives = flag_subspace(randn(8, 30), rank=4, pairwise=pairwise)
        basis = columns @ coefficients
        close(basis.mT @ basis, torch.eye(4, dtype=torch.float64), 1e-8)
        assert len(objectives) >= 2 and all(later < earlier for earlier, later in itertools.pairwise(objectives))

    def test_the_objective_is_the_papers(self):
        gradients, strength = randn(7, 20), 1.5
        columns, coefficients, objectives = flag_subspace(gradients, rank=3, pairwise=strength)
        basis = columns @ coefficients

        def residue(vector):
            return float((1 - (basis.mT @ vector).square().sum() / vector.square().sum() + 1e-7).sqrt())

        single = sum(residue(g) for g in gradients)
        pairs = sum(residue(one - other) for i, one in enumerate(gradients) for j, other in enumerate(gradients) if i != j)
        assert objectives[-1] == pytest.approx(single + strength / (7 * 6) * pairs, rel=1e-9)

    def test_is_a_local_minimum(self):
        gradients = randn(7, 10)
        columns, coefficients, objectives = flag_subspace(gradients, rank=3, iterations=3000)
        units = torch.nn.functional.normalize(gradients, dim=1)
        basis = columns @ coefficients
        for seed in range(20):
            turned = torch.linalg.qr(basis + 1e-2 * randn(10, 3, seed=seed + 10)).Q
            value = float((1 - (units @ turned).square().sum(1) + 1e-7).sqrt().sum())
            assert value >= objectives[-1] - 1e-4

    def test_rotation_and_scale(self):
        gradients, turn = randn(8, 12), rotation(12)
        close(flag(gradients @ turn, rank=3), flag(gradients, rank=3) @ turn, 1e-6)
        scales = torch.rand(8, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.1
        close(flag(gradients * scales, rank=3, form="code"), flag(gradients, rank=3, form="code"), 1e-6)

    def test_eight_honest_and_two_of_ten_times_the_norm(self):
        cosines = {"mean": [], "flag": []}
        for seed in range(40):
            direction = torch.nn.functional.normalize(randn(50, seed=seed), dim=0)
            honest = direction + 0.1 * randn(8, 50, seed=seed + 100)
            bad = torch.nn.functional.normalize(randn(2, 50, seed=seed + 200), dim=1) * 10 * honest.norm(dim=1).mean()
            workers = torch.cat([honest, bad])
            for name, result in (("mean", workers.mean(0)), ("flag", flag(workers, 2, rank=3, form="code"))):
                cosines[name].append(float(torch.nn.functional.cosine_similarity(result, honest.mean(0), dim=0)))
        medians = {name: sorted(values)[20] for name, values in cosines.items()}
        assert medians["mean"] < 0.75 and medians["flag"] > 0.95, medians
        assert all(b > a for a, b in zip(cosines["mean"], cosines["flag"], strict=True))

    def test_forms(self, vectors):
        code, normalised = (flag(vectors, rank=3, form=form) for form in ("code", "normalised"))
        close(normalised, code * 3 / 9 * vectors.norm(dim=1).median())
        units = torch.nn.functional.normalize(vectors, dim=1)
        close(flag(units, rank=3), code * 3 / 9)  # of unit vectors, the paper's form is the same direction

    def test_the_papers_form_lets_very_large_vectors_pass(self):
        honest = randn(1, 50) + 0.1 * randn(8, 50, seed=1)
        workers = torch.cat([honest, 1e3 * randn(2, 50, seed=2)])
        for form, low, high in (("paper", -1.0, 0.5), ("normalised", 0.9, 1.0)):
            assert low <= float(torch.cosine_similarity(flag(workers, rank=3, form=form), honest.mean(0), dim=0)) <= high

    def test_vectors_of_zeros_and_a_large_dimension(self):
        gradients = torch.cat([randn(4, 5000), torch.zeros(2, 5000, dtype=torch.float64)])
        result = flag(gradients, 2, rank=4)
        close(result, gradients.mean(0), 1e-7)
        assert bool(torch.isfinite(flag(torch.zeros(3, 5, dtype=torch.float64))).all())

    @pytest.mark.parametrize("bad", [{"rank": 0}, {"rank": 10}, {"pairwise": -1.0}, {"iterations": 0}, {"form": "other"}])
    def test_refuses(self, vectors, bad):
        with pytest.raises(ValueError, match=next(iter(bad))):
            flag(vectors, **bad)
