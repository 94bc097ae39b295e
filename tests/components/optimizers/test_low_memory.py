from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from components.optimizers import FRUGAL, Fira
from components.optimizers.low_memory import PROJECTIONS, choose_part, down, project_up
from components.testing.optimizers import MakeOptimizer, OptimizerContract, OptimizerReferenceContract, Quadratic, assert_close, assert_same

SHAPES = [(6, 4), (4, 6), (5, 5)]


def gradients(steps, shapes=SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes] for _ in range(steps)]


def play(make, steps, shapes=SHAPES, **options):
    """The parameters after each step of a fixed sequence of gradients, and the optimizer."""
    parameters = [torch.ones(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    optimizer = make(parameters, **options)
    path = []
    for row in gradients(steps, shapes):
        for p, g in zip(parameters, row, strict=True):
            p.grad = g
        optimizer.step()
        path.append([p.detach().clone() for p in parameters])
    return path, optimizer


def moments(optimizer):
    """Numbers that the optimizer keeps, of every parameter."""
    return [sum(v.numel() for v in optimizer.state[p].values() if isinstance(v, torch.Tensor)) for g in optimizer.param_groups for p in g["params"]]


@pytest.mark.parametrize("projection", PROJECTIONS)
class TestFRUGALContract(OptimizerContract):
    @pytest.fixture
    def make(self, projection) -> MakeOptimizer:
        return partial(FRUGAL, projection=projection, density=0.5, update_gap=3, reset=projection != "rows", weight_decay=0.01)


class TestFRUGAL:
    @pytest.mark.parametrize("projection", PROJECTIONS[:4])
    def test_density_1_is_adamw(self, projection):
        options = {"lr": 0.01, "weight_decay": 0.1}
        adamw, _ = play(torch.optim.AdamW, 12, **options)
        ours, _ = play(FRUGAL, 12, density=1.0, projection=projection, update_gap=8, **options)
        assert_close(ours[7], adamw[7])
        assert float((ours[8][0] - adamw[8][0]).abs().max()) > 1e-4  # the moments have started anew
        for_ever, _ = play(FRUGAL, 12, density=1.0, projection=projection, update_gap=3, reset=False, **options)
        assert_close(for_ever[-1], adamw[-1])

    @pytest.mark.parametrize("projection", PROJECTIONS)
    def test_density_0_is_sign_descent_without_state(self, projection):
        path, optimizer = play(FRUGAL, 3, density=0.0, projection=projection, lr=0.01)
        expected = [torch.ones(shape, dtype=torch.float64) - 0.01 * sum(row[i].sign() for row in gradients(3)) for i, shape in enumerate(SHAPES)]
        assert_close(path[-1], expected)
        assert moments(optimizer) == [0, 0, 0]

    def test_a_gradient_of_zero_stays(self):
        theta = torch.ones(2, 2, requires_grad=True)
        theta.grad = torch.tensor([[0.0, 2.0], [-3.0, 0.0]])
        FRUGAL([theta], density=0.0, lr=0.5).step()
        assert_same([theta.detach()], [torch.tensor([[1.0, 0.5], [1.5, 1.0]])])

    @pytest.mark.parametrize("projection", PROJECTIONS[1:])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_the_split_is_exact(self, projection, shape):
        gradient = gradients(1, [shape])[0][0]
        part = choose_part(projection, 0.5, gradient, torch.Generator().manual_seed(0))
        kept = down(gradient, part)
        if projection in ("svd", "random"):
            back = project_up(kept, part["projector"])
            assert abs(float((back * (gradient - back)).sum())) < 1e-12
            assert torch.linalg.matrix_rank(back) == round(0.5 * min(shape))
        else:
            assert kept.numel() == gradient.numel() * len(part["index"]) // (gradient.numel() if projection == "entries" else shape[part["axis"]])
        rest = FRUGAL.whole({"state_free_scale": 1.0, "state_free": "sgd"}, gradient, kept, kept, part)
        assert_close([rest], [gradient], 1e-14)  # U D G + (G - U D G)

    def test_parts_of_a_step(self):
        # columns: Adam's first step is sign(g) too, of size lr; the free columns move by lr * scale
        path, optimizer = play(FRUGAL, 1, projection="columns", density=0.5, lr=0.01, state_free_scale=0.1, eps=0.0)
        for (i, g), p in zip(enumerate(gradients(1)[0]), optimizer.param_groups[0]["params"], strict=True):
            index = optimizer.state[p]["index"]
            size = torch.full_like(g, 0.001)
            size[:, index] = 0.01
            assert len(index) == round(0.5 * g.shape[1])
            assert_close([1 - path[0][i]], [size * g.sign()], 1e-14)

    def test_without_the_free_part_it_is_galore(self):
        # one subspace schedule: refreshed at steps 1 and 4, moments kept; eps where Adam has it
        path, _ = play(FRUGAL, 6, projection="svd", density=0.5, update_gap=3, reset=False, state_free="none", lr=0.01)
        theta, m, v, basis = torch.ones(6, 4, dtype=torch.float64), 0.0, 0.0, None
        for t, row in enumerate(gradients(6), start=1):
            if t in (1, 4):
                basis = torch.linalg.svd(row[0])[2][:2]
            low = row[0] @ basis.T
            m, v = 0.9 * m + 0.1 * low, 0.999 * v + 0.001 * low**2
            theta = theta - 0.01 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8) @ basis
        assert_close([path[-1][0]], [theta])

    @pytest.mark.parametrize("order", ["random", "ascending", "descending"])
    def test_blocks_take_turns_and_the_memory_is_the_density(self, order):
        shapes = [(4, 4)] * 8
        parameters = [torch.ones(shape, requires_grad=True) for shape in shapes]
        optimizer = FRUGAL(parameters, density=0.25, update_gap=2, block_order=order)
        turns = []
        for row in gradients(16, shapes):
            for p, g in zip(parameters, row, strict=True):
                p.grad = g.float()
            optimizer.step()
            assert sum(moments(optimizer)) == 2 * 2 * 16
            turns.append([i for i, p in enumerate(parameters) if "exp_avg" in optimizer.state[p]])
        assert turns[0::2] == turns[1::2]
        if order == "ascending":
            assert turns[0::2][:5] == [[0, 1], [2, 3], [4, 5], [6, 7], [0, 1]]
        elif order == "descending":
            assert turns[0::2][:5] == [[6, 7], [4, 5], [2, 3], [0, 1], [6, 7]]
        else:
            assert len({tuple(turn) for turn in turns}) > 3

    def test_what_is_not_a_hidden_matrix_is_adamws(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
        groups = FRUGAL.groups(model, list(model.parameters()))
        assert [p.shape for p in next(g for g in groups if g["projectable"])["params"]] == [(6, 4)]
        optimizer = FRUGAL(groups, density=0.0)
        model(torch.tensor([[0, 1, 2]])).square().sum().backward()
        optimizer.step()
        assert ["exp_avg" in optimizer.state[p] for p in model.parameters()] == [True, False, True, True, True, True, True]

    def test_seeds_choose_other_parts(self):
        paths = [play(FRUGAL, 2, projection="entries", density=0.3, seed=seed)[0][-1] for seed in (0, 0, 1)]
        assert_same(paths[0], paths[1])
        assert not torch.equal(paths[0][0], paths[2][0])


class TestFiraContract(OptimizerContract, OptimizerReferenceContract):
    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return partial(Fira, lr=0.01, rank=2, update_gap=4, alpha=0.7, weight_decay=0.01)

    @pytest.fixture
    def reference(self):
        def fira(w, g, s):
            s["t"] = t = s.get("t", 0) + 1
            matrix = g.ndim == 2
            if matrix and t % 4 == 1:
                s["P"] = torch.linalg.svd(g)[2][:2]  # the quadratic's matrix is tall: (4, 3)
            low = g @ s["P"].T if matrix else g
            s["m"] = 0.9 * s.get("m", 0.0) + 0.1 * low
            s["v"] = 0.999 * s.get("v", 0.0) + 0.001 * low**2
            step = s["m"] / (s["v"].sqrt() + 1e-6)
            if matrix:
                rest = torch.stack([step[i].norm() / (low[i].norm() + 1e-8) * (g - low @ s["P"])[i] for i in range(len(g))])
                if "last" in s and rest.norm() / (s["last"] + 1e-8) > 1.01:
                    rest = rest * (1.01 * (s["last"] + 1e-8) / rest.norm())
                s["last"] = rest.norm()
                step = 0.7 * step @ s["P"] + rest
            return (w - 0.01 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * step) * (1 - 0.01 * 0.01)

        return fira


@pytest.mark.parametrize("options", [{"scaling": "matrix"}, {"released_residual": True, "alpha": 0.25}], ids=str)
class TestFiraVariants(OptimizerContract):
    @pytest.fixture
    def make(self, options) -> MakeOptimizer:
        return partial(Fira, lr=0.01, rank=2, update_gap=4, **options)


class TestFira:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_full_rank_is_adam_in_a_rotated_basis(self, shape):
        path, optimizer = play(Fira, 5, [shape], rank=99, lr=0.01)
        rows = gradients(5, [shape])
        left, _, right = torch.linalg.svd(rows[0][0], full_matrices=False)
        tall = shape[0] >= shape[1]
        theta, m, v = torch.ones(shape, dtype=torch.float64), 0.0, 0.0
        for t, (g,) in enumerate(rows, start=1):
            low = g @ right.T if tall else left.T @ g
            m, v = 0.9 * m + 0.1 * low, 0.999 * v + 0.001 * low**2
            step = (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * m / (v.sqrt() + 1e-6)
            theta = theta - 0.01 * (step @ right if tall else left @ step)
        assert_close([path[-1][0]], [theta], 1e-11)
        assert float(optimizer.state[optimizer.param_groups[0]["params"][0]]["residual_norm"]) < 1e-10

    @pytest.mark.parametrize(("second", "stored"), [(2.0, 1.01), (1.005, 1.005)])
    def test_limiter(self, second, stored):
        group = {"alpha": 1.0, "released_residual": False, "scaling": "matrix", "growth_limit": 1.01, "products": "full"}
        projector, unit = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
        state = {"projector": projector}
        for norm in (1.0, second):  # the residual is the second column, the scale 1
            gradient = torch.tensor([[1.0, norm], [1.0, 0.0]], dtype=torch.float64)
            Fira.whole(group, gradient, unit, unit, state)
        assert float(state["residual_norm"]) == pytest.approx(stored, abs=1e-7)

    @pytest.mark.parametrize("scaling", ["vector", "matrix"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_the_residual_is_orthogonal_to_the_projected_part(self, shape, scaling):
        gradient = gradients(1, [shape])[0][0]
        state = choose_part("svd", 0.5, gradient, torch.Generator())
        reduced = down(gradient, state)
        step = reduced.sign() * reduced.abs().sqrt()
        group = {"alpha": 1.0, "released_residual": False, "scaling": scaling, "growth_limit": 1.01, "products": "full"}
        back = project_up(step, state["projector"])
        residual = Fira.whole(group, gradient, reduced, step, state) - back
        assert abs(float((residual * back).sum())) < 1e-12
        assert float(residual.norm()) > 0.1

    def test_state(self):
        _, optimizer = play(Fira, 2, [(30, 20), (20, 30)], rank=3)
        assert moments(optimizer) == [2 * 3 * 30 + 3 * 20 + 1] * 2

    def test_products_in_bfloat16_are_nearly_the_same(self):
        ends = []
        for products in ("full", "bfloat16"):
            problem = Quadratic(dtype=torch.float32)
            start = problem.values()
            optimizer = Fira(problem.parameters, lr=0.01, rank=2, products=products)
            for _ in range(20):
                problem.step(optimizer)
            ends.append([after - before for after, before in zip(problem.values(), start, strict=True)])
        for full, rounded in zip(*ends, strict=True):
            assert float((full - rounded).norm()) < 0.02 * float(full.norm())
        assert not torch.equal(ends[0][0], ends[1][0])

    def test_the_limiter_stops_spikes(self):
        # the subspace turns with every refresh, and small projected rows scale the residual up: without a limit the loss jumps
        def largest_rise(limit):
            problem = Quadratic()
            optimizer = Fira(problem.parameters, lr=0.1, rank=1, update_gap=5, growth_limit=limit)
            losses = [problem.step(optimizer) for _ in range(60)]
            return max(after - before for before, after in pairwise(losses))

        assert largest_rise(1.01) < largest_rise(1e9)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (FRUGAL, {"density": 1.5}, "density.*1.5"),
        (FRUGAL, {"update_gap": 0}, "update_gap.*0"),
        (FRUGAL, {"projection": "colums"}, "columns"),
        (FRUGAL, {"state_free": "signs"}, "sign"),
        (Fira, {"rank": 0}, "rank.*0"),
        (Fira, {"growth_limit": 0.9}, "growth_limit.*0.9"),
        (Fira, {"scaling": "row"}, "scaling.*row"),
    ],
)
def test_wrong_options_are_refused_by_name(make, options, message):
    with pytest.raises(ValueError, match=message):
        make([torch.ones(2, 2, requires_grad=True)], **options)


@pytest.mark.parametrize("make", [FRUGAL, Fira])
def test_projectable_takes_matrices(make):
    with pytest.raises(ValueError, match=r"projectable takes matrices.*\(3,\)"):
        make([{"params": [torch.ones(3, requires_grad=True)], "projectable": True}])


def next_letter_loss(make, steps=300):
    """What a small network makes of the next letter of a text that repeats itself with errors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(8, 16), nn.Flatten(), nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    generator = torch.Generator().manual_seed(1)
    rule = torch.randint(8, (8, 8, 8), generator=generator)
    contexts = torch.randint(8, (2000, 3), generator=generator)
    letters = rule[contexts[:, 0], contexts[:, 1], contexts[:, 2]]
    optimizer = make(FRUGAL.groups(model, list(model.parameters())))
    total = 0.0
    for step in range(steps):
        rows = torch.randint(2000, (64,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(contexts[rows]), letters[rows])
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) if step >= steps - 50 else 0.0
    return total / 50


def test_full_rank_steps_beat_low_rank_ones_of_equal_memory():
    # the moments are kept between the subspaces, as in GaLore; density 0.1 of the hidden matrices
    options = {"lr": 2e-3, "density": 0.1, "update_gap": 50, "projection": "svd"}
    adamw = next_letter_loss(partial(FRUGAL, lr=2e-3, density=1.0, reset=False))
    frugal = next_letter_loss(partial(FRUGAL, **options))
    fira = next_letter_loss(partial(Fira, lr=2e-3, rank=5, update_gap=50))
    galore = next_letter_loss(partial(FRUGAL, **options, state_free="none", reset=False))
    assert adamw <= frugal < galore
    assert adamw <= fira < galore
