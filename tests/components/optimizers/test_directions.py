import copy
from functools import partial

import pytest
import torch
from torch import nn

from components.optimizers import DOT, OrthoGrad
from components.optimizers.directions import across
from components.testing.optimizers import MakeOptimizer, OptimizerContract, OptimizerReferenceContract, Quadratic, assert_close, assert_same, through_a_file


def scalar(value=0.0):
    return torch.tensor([value], dtype=torch.float64, requires_grad=True)


def distil(optimizer, theta, task, distillation, steps):
    """Constant gradients of the two losses."""
    for _ in range(steps):
        theta.grad = torch.full_like(theta, distillation)
        optimizer.distill()
        theta.grad = torch.full_like(theta, task)
        optimizer.step()
    return float(theta.detach())


class Student:
    """A quadratic as the task, and another whose minimum lies elsewhere as the distillation; the last parameter is the task's alone."""

    def __init__(self):
        self.problem, self.teacher = Quadratic(seed=0), Quadratic(seed=1)
        self.parameters = self.problem.parameters

    def losses(self):
        pull = 0.5 * (self.teacher.curvatures[0] * (self.parameters[0] - self.teacher.centres[0]) ** 2).sum()
        return self.problem.loss(), pull


class TestDOTWithoutDistillation(OptimizerContract, OptimizerReferenceContract):
    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return partial(DOT, lr=0.02, weight_decay=0.1, momentum=0.8)

    @pytest.fixture
    def reference(self):
        def sgd(theta, g, s):
            g = g + 0.1 * theta
            s["v"] = 0.8 * s["v"] + g if "v" in s else g
            return theta - 0.02 * s["v"]

        return sgd

    # the contract's "nothing but decay" asks for less than one per cent in three steps
    def test_zero_gradients_move_nothing_but_decay(self, make):
        super().test_zero_gradients_move_nothing_but_decay(partial(make, weight_decay=0.01))


class TestDOT:
    @pytest.mark.parametrize("weight_decay", [0.0, 0.1])
    def test_equal_momenta_are_sgd_on_the_sum(self, weight_decay):
        ours, theirs = Student(), Student()
        dot = DOT(ours.parameters, lr=0.02, delta=0.0, weight_decay=weight_decay)
        sgd = torch.optim.SGD(theirs.parameters, lr=0.02, momentum=0.9, weight_decay=weight_decay)
        for _ in range(30):
            value = dot.step(ours.losses)
            sgd.zero_grad()
            loss = sum(theirs.losses())
            loss.backward()
            sgd.step()
            assert float(value) == pytest.approx(float(loss.detach()), abs=1e-10)
        assert_close([p.detach() for p in ours.parameters], [p.detach() for p in theirs.parameters])

    @pytest.mark.parametrize(("delta", "end"), [(0.075, -0.8775), (0.0, -0.87)])
    def test_worked_value(self, delta, end):
        theta = scalar()
        assert distil(DOT([theta], lr=0.1, delta=delta), theta, 1.0, 2.0, 2) == pytest.approx(end, abs=1e-14)

    def test_asymptotic_ratio_is_seven(self):
        theta = scalar()
        optimizer = DOT([theta], lr=1e-3)
        distil(optimizer, theta, 1.0, 1.0, 1500)
        state = optimizer.state[theta]
        assert float(state["task_buffer"]) == pytest.approx(1 / 0.175, abs=1e-10)
        assert float(state["distillation_buffer"]) == pytest.approx(40.0, abs=1e-8)

    def test_a_distillation_of_zero_leaves_the_shorter_momentum(self):
        theta, other = scalar(1.0), scalar(1.0)
        distil(DOT([theta], lr=0.1), theta, 0.5, 0.0, 10)
        sgd = torch.optim.SGD([other], lr=0.1, momentum=0.825)
        for _ in range(10):
            other.grad = torch.full_like(other, 0.5)
            sgd.step()
        assert_close([theta.detach()], [other.detach()])

    def test_closure_and_distill_are_the_same_and_agree_with_two_buffers(self):
        one, two = Student(), Student()
        by_closure, by_hand = (DOT(student.parameters, lr=0.02, delta=0.05, weight_decay=0.1) for student in (one, two))
        theta = [p.detach().clone() for p in one.parameters]
        task, kd = [None, None], None
        for _ in range(15):
            by_closure.step(one.losses)
            by_hand.zero_grad()
            loss, pull = two.losses()
            pull.backward(retain_graph=True)
            by_hand.distill()
            loss.backward()
            by_hand.step()
            for i, momentum in enumerate((0.85, 0.9)):  # the vector is reached by the task alone
                g = one.problem.curvatures[i] * (theta[i] - one.problem.centres[i]) + 0.1 * theta[i]
                task[i] = g if task[i] is None else momentum * task[i] + g
            g = one.teacher.curvatures[0] * (theta[0] - one.teacher.centres[0])
            kd = g if kd is None else 0.95 * kd + g
            theta = [theta[0] - 0.02 * (task[0] + kd), theta[1] - 0.02 * task[1]]
        assert_same([p.detach() for p in one.parameters], [p.detach() for p in two.parameters])
        assert_close([p.detach() for p in one.parameters], theta, 1e-10)

    def test_several_calls_add_up_and_zero_grad_forgets(self):
        theta = torch.tensor([1.0, 2.0], requires_grad=True)
        optimizer = DOT([theta], lr=0.1)
        optimizer.distill((5 * theta).sum())
        optimizer.zero_grad()
        theta.grad = torch.tensor([7.0, 7.0])
        for factor in (1.0, 3.0):
            optimizer.distill((factor * theta).sum())
        assert_same([theta.grad], [torch.tensor([7.0, 7.0])])
        optimizer.step()
        assert_same([optimizer.state[theta]["distillation_buffer"]], [torch.tensor([4.0, 4.0])])
        assert_close([theta.detach()], [torch.tensor([-0.1, 0.9])], 1e-6)

    def test_a_sparse_gradient_of_the_distillation_is_refused(self):
        table = nn.Embedding(4, 2, sparse=True)
        with pytest.raises(ValueError, match=r"DOT takes dense gradients.*sparse"):
            DOT(table.parameters()).distill(table(torch.tensor([1])).sum())

    def test_what_the_distillation_alone_reaches_decays_from_the_first_step(self):
        theta, other = scalar(2.0), scalar(2.0)
        optimizer, sgd = DOT([theta], lr=0.1, weight_decay=0.5), torch.optim.SGD([other], lr=0.1, momentum=0.9, weight_decay=0.5)
        for _ in range(3):
            theta.grad, other.grad = torch.ones_like(theta), torch.ones_like(other)
            optimizer.distill()
            assert theta.grad is None
            optimizer.step()
            sgd.step()
        assert_close([theta.detach()], [other.detach()])

    def test_resumes_with_both_buffers(self):
        theta = scalar(1.0)
        optimizer = DOT([theta], lr=0.1)
        distil(optimizer, theta, 1.0, -2.0, 3)
        other = theta.detach().clone().requires_grad_()
        again = DOT([other], lr=0.1)
        again.load_state_dict(through_a_file(optimizer.state_dict()))
        assert distil(optimizer, theta, 0.3, 0.1, 2) == distil(again, other, 0.3, 0.1, 2)

    def test_gradients_that_are_kept_are_not_written_to(self):
        theta = scalar(1.0)
        optimizer = DOT([theta], lr=0.1)
        gradient = torch.ones_like(theta)
        for _ in range(2):
            theta.grad = gradient
            optimizer.step()
        assert float(gradient) == 1.0


def distil_on_a_rank(rank: int, ranks: int, store: str) -> None:
    """Each rank's share of the samples, through DDP: the end must be that of all samples in one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    inputs, labels, teacher = (torch.randn(8, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (3, 2, 5))
    ends = []
    for share in (slice(rank * 4, rank * 4 + 4), slice(None)):
        torch.manual_seed(0)
        model = nn.Linear(3, 2).double()
        network = nn.parallel.DistributedDataParallel(model) if len(ends) == 0 else model
        optimizer = DOT(model.parameters(), lr=0.05)
        distilled = optimizer if len(ends) == 0 else Alone(optimizer)
        for _ in range(5):
            optimizer.zero_grad()
            outputs = network(inputs[share])
            distilled.distill((outputs - teacher[share, :2]).square().mean())
            (outputs - labels[share]).square().mean().backward()
            optimizer.step()
        ends.append([p.detach().clone() for p in model.parameters()])
    assert_close(*ends)
    torch.distributed.destroy_process_group()


class Alone:
    """One process's DOT in a group of processes: no gradient is averaged."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def distill(self, loss):
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True):
            p.grad = gradient
        self.optimizer.distill()


def test_dots_gradients_are_averaged_over_ranks(tmp_path):
    torch.multiprocessing.spawn(distil_on_a_rank, args=(2, str(tmp_path / "store")), nprocs=2)


class TestOrthoGradContract(OptimizerContract):
    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return partial(OrthoGrad, lr=0.01, base="SGD", rescale=False)


class TestOrthoGradOnSGD(OptimizerReferenceContract):
    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return partial(OrthoGrad, lr=0.02, base="SGD", base_options={"momentum": 0.9})

    @pytest.fixture
    def reference(self):
        def orthograd(w, g, s):
            rest = g - (w * g).sum() / ((w * w).sum() + 1e-30) * w
            rest = rest * g.norm() / (rest.norm() + 1e-30)
            s["v"] = 0.9 * s["v"] + rest if "v" in s else rest
            return w - 0.02 * s["v"]

        return orthograd


class TestOrthoGrad:
    def test_worked_value(self):
        w, g = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
        assert_close([across(w, g, rescale=False)], [torch.tensor([-0.32, 0.24], dtype=torch.float64)])
        assert_close([across(w, g, rescale=True)], [torch.tensor([-1.788854382, 1.341640786], dtype=torch.float64)], 1e-9)
        assert_same([across(torch.zeros_like(w), g, rescale=True)], [g])

    def test_orthogonal_with_the_gradients_norm(self):
        generator = torch.Generator().manual_seed(0)
        for shape in [(7, 5), (3,), (2, 3, 4)]:
            w, g = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
            rest = across(w, g, rescale=True)
            assert abs(float((rest * w).sum())) < 1e-5 * float(w.norm() * g.norm())
            assert float(rest.norm()) == pytest.approx(float(g.norm()), rel=1e-6)

    def test_a_gradient_along_the_weights_leaves_nothing(self):
        w = torch.randn(50, generator=torch.Generator().manual_seed(0))
        assert_same([across(w, 0.37 * w, rescale=True)], [torch.zeros(50)])
        assert_same([across(torch.tensor([0.3]), torch.tensor([0.7]), rescale=True)], [torch.zeros(1)])

    def test_the_gradient_itself_stays(self):
        w = torch.tensor([3.0, 4.0], requires_grad=True)
        w.grad = torch.tensor([1.0, 2.0])
        OrthoGrad([w]).step()
        assert_same([w.grad], [torch.tensor([1.0, 2.0])])

    def test_is_the_base_optimizer_on_the_changed_gradients(self):
        ours, theirs = Quadratic(), Quadratic()
        wrapped = OrthoGrad(ours.parameters, lr=0.01, weight_decay=0.1, base="Adam", base_options={"betas": (0.8, 0.9)}, rescale=False)
        plain = torch.optim.Adam(theirs.parameters, lr=0.01, weight_decay=0.1, betas=(0.8, 0.9))
        for _ in range(10):
            ours.step(wrapped)
            plain.zero_grad()
            theirs.loss().backward()
            for p in theirs.parameters:
                p.grad -= (p.detach() * p.grad).sum() / p.detach().square().sum() * p.detach()
            plain.step()
        assert_close(ours.values(), theirs.values())

    def test_the_direction_that_scales_the_logits_is_gone(self):
        # a homogeneous network that fits its samples: plain descent lets the weights grow along themselves
        def growth(make):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 16, bias=False), nn.ReLU(), nn.Linear(16, 2, bias=False))
            inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
            target = (inputs[:, 0] > 0).long()
            optimizer = make(model.parameters())
            with torch.no_grad():
                before = sum(float(p.square().sum()) for p in model.parameters())
            for _ in range(200):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), target).backward()
                optimizer.step()
            return sum(float(p.detach().square().sum()) for p in model.parameters()) / before

        assert growth(partial(torch.optim.SGD, lr=0.1)) > growth(partial(OrthoGrad, lr=0.1, base="SGD", rescale=False)) > 1

    def test_copies_and_new_groups(self):
        problem = Quadratic()
        optimizer = OrthoGrad(problem.parameters[:1], lr=0.01)
        optimizer.add_param_group({"params": problem.parameters[1:], "lr": 0.02})
        problem.step(optimizer)
        parameters, again = copy.deepcopy((problem.parameters, optimizer))
        assert len(again.state) == 2 and again.param_groups[1]["lr"] == 0.02
        for p, q in zip(problem.parameters, parameters, strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        again.step()
        assert_same([p.detach() for p in problem.parameters], [q.detach() for q in parameters])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (DOT, {"delta": 0.1}, r"momentum \+ delta < 1.*0.1"),
        (DOT, {"momentum": 0.1, "delta": 0.2}, "delta <= momentum.*0.2"),
        (OrthoGrad, {"base": "AdamWw"}, "did you mean 'AdamW'"),
        (OrthoGrad, {"base_options": {"momentum": 0.9}}, "base_options must be options of torch.optim.AdamW.*momentum"),
    ],
)
def test_wrong_options_are_refused_by_name(make, options, message):
    with pytest.raises(ValueError, match=message):
        make([scalar()], **options)
