"""Trials that every optimizer must pass. Inherit :class:`OptimizerContract` and give one fixture.

    class TestMine(OptimizerContract):
        @pytest.fixture
        def make(self) -> MakeOptimizer:
            return functools.partial(MyOptimizer, momentum=0.9)

:class:`OptimizerReferenceContract` holds it to an independent implementation.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

MakeOptimizer = Callable[..., Optimizer]
"""(parameters or parameter groups, **options) -> optimizer; the options override the defaults that it comes with."""


class Quadratic:
    """A small convex problem: :math:`\\frac12 \\sum_i h_i (\\theta_i - c_i)^2` over a matrix and a vector, one minimum."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(seed)
        shapes = [(4, 3), (5,)]
        self.parameters = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
        self.centres = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
        self.curvatures = [torch.rand(shape, generator=generator, dtype=dtype) + 0.5 for shape in shapes]

    def loss(self) -> Tensor:
        parts = [(h * (p - c) ** 2).sum() for p, c, h in zip(self.parameters, self.centres, self.curvatures, strict=True)]
        return 0.5 * torch.stack(parts).sum()

    def step(self, optimizer: Optimizer) -> float:
        """One training step; the loss before it."""

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        return float(torch.as_tensor(optimizer.step(closure)).detach())  # type: ignore[arg-type]

    def values(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters]


class OptimizerContract:
    """The trials.

    Give:
        make: fixture; :data:`MakeOptimizer`.

    Facts that the trials enforce:
        uses_lr_at_every_step: a learning rate that a schedule sets takes effect (torch's Rprop reads it once, at its first step).
        lr_delay: steps until it does (torch's ASGD works with the step size that it computed at the end of the step before).
        several_groups: takes parameter groups (torch's LBFGS does not).
        rests_at_zero_rate: at a learning rate of 0 nothing moves (what is anchored at its start goes back to it).
        steps_by_the_loss: needs the loss (``step(closure)``), and its groups move by a size that they find together.
        reads_missing_gradients_as_zero: a parameter without a gradient is not left out but counts as one with gradient 0 (LBFGS).
    """

    uses_lr_at_every_step: bool = True
    lr_delay: int = 0
    several_groups: bool = True
    rests_at_zero_rate: bool = True
    steps_by_the_loss: bool = False
    reads_missing_gradients_as_zero: bool = False

    @pytest.fixture
    def make(self) -> MakeOptimizer:
        raise NotImplementedError("an OptimizerContract needs a fixture `make`: (parameters, **options) -> optimizer")

    def test_descends_a_convex_quadratic(self, make: MakeOptimizer) -> None:
        problem = Quadratic()
        optimizer = make(problem.parameters)
        before = float(problem.loss().detach())
        losses = [problem.step(optimizer) for _ in range(300)]
        assert losses[0] == pytest.approx(before)
        assert losses[-1] < 0.97 * before, f"from {before} to {losses[-1]} in 300 steps"
        assert all(bool(torch.isfinite(p).all()) for p in problem.parameters)

    def test_is_deterministic(self, make: MakeOptimizer) -> None:
        assert_same(self.run(make, 10), self.run(make, 10))

    def test_resumes_midway_bit_for_bit(self, make: MakeOptimizer) -> None:
        # in float32, as models are trained: loading casts what torch's NAdam keeps in float32 to a float64 parameter's type
        for stop in (1, 5):
            first = Quadratic(dtype=torch.float32)
            optimizer = make(first.parameters)
            for _ in range(stop):
                first.step(optimizer)
            stored = through_a_file({"optimizer": optimizer.state_dict(), "parameters": first.values()})
            second = Quadratic(seed=1, dtype=torch.float32)
            second.centres, second.curvatures = first.centres, first.curvatures
            with torch.no_grad():
                for parameter, value in zip(second.parameters, stored["parameters"], strict=True):
                    parameter.copy_(value)
            resumed = make(second.parameters)
            resumed.load_state_dict(stored["optimizer"])
            for _ in range(5):
                first.step(optimizer)
                second.step(resumed)
            assert_same(first.values(), second.values())

    def test_state_dict_round_trip(self, make: MakeOptimizer) -> None:
        problem = Quadratic()
        optimizer = make(problem.parameters)
        for _ in range(3):
            problem.step(optimizer)
        again = make(problem.parameters)
        again.load_state_dict(through_a_file(optimizer.state_dict()))
        assert_equal_trees(again.state_dict(), optimizer.state_dict())

    def test_groups_have_learning_rates_of_their_own(self, make: MakeOptimizer) -> None:
        together = Quadratic()
        groups = [{"params": [together.parameters[0]], "lr": 1e-2}, {"params": [together.parameters[1]], "lr": 1e-3}]
        if not self.several_groups:
            with pytest.raises(ValueError, match="group"):
                make(groups)
            return
        optimizer = make(groups)
        if self.steps_by_the_loss:
            optimizer.param_groups[1]["lr"] = 0.0
            before = together.values()
            for _ in range(3):
                together.step(optimizer)
            assert not torch.equal(before[0], together.values()[0]) and torch.equal(before[1], together.values()[1])
            return
        apart = Quadratic()
        optimizers = [make([apart.parameters[0]], lr=1e-2), make([apart.parameters[1]], lr=1e-3)]
        for _ in range(5):
            together.step(optimizer)
            for each in optimizers:
                each.zero_grad()
            apart.loss().backward()  # type: ignore[no-untyped-call]
            for each in optimizers:
                each.step()
        assert_same(together.values(), apart.values())

    def test_parameters_without_gradient_are_left_alone(self, make: MakeOptimizer) -> None:
        problem = Quadratic()
        unused = [torch.ones(3, 2, dtype=torch.float64, requires_grad=True), torch.ones(2, dtype=torch.float64, requires_grad=True)]
        optimizer = make([*problem.parameters, *unused])
        for _ in range(3):
            problem.step(optimizer)
        assert all(torch.equal(p, torch.ones_like(p)) for p in unused)
        if not self.reads_missing_gradients_as_zero:
            assert_same(problem.values(), self.run(make, 3))

    def test_zero_gradients_move_nothing_but_decay(self, make: MakeOptimizer) -> None:
        problem = Quadratic()
        before = problem.values()
        optimizer = make(problem.parameters)
        for _ in range(3):
            for parameter in problem.parameters:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step(lambda: 0.0)
        for after, start in zip(problem.values(), before, strict=True):
            ratio = after / start
            assert bool(torch.isfinite(after).all()) and bool(((ratio > 0.99) & (ratio <= 1)).all())

    def test_learning_rate_changes_are_honoured(self, make: MakeOptimizer) -> None:
        problem = Quadratic()
        optimizer = make(problem.parameters)
        for _ in range(3):
            problem.step(optimizer)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        for _ in range(self.lr_delay):
            problem.step(optimizer)
        before = problem.values()
        problem.step(optimizer)
        moved = any(not torch.equal(a, b) for a, b in zip(before, problem.values(), strict=True))
        if not self.rests_at_zero_rate:
            assert any(not torch.equal(a, b) for a, b in zip(problem.values(), self.run(make, 4 + self.lr_delay), strict=True))
            return
        assert moved != self.uses_lr_at_every_step
        if not self.uses_lr_at_every_step:
            assert_same(problem.values(), self.run(make, 4 + self.lr_delay))

    def test_invalid_learning_rate_is_refused_by_name(self, make: MakeOptimizer) -> None:
        with pytest.raises(ValueError, match=r"(?i)(learning.rate|\blr\b).*-0\.5"):
            make(Quadratic().parameters, lr=-0.5)

    def test_a_missing_loss_is_refused_by_name(self, make: MakeOptimizer) -> None:
        problem = Quadratic()
        optimizer = make(problem.parameters)
        problem.loss().backward()  # type: ignore[no-untyped-call]
        if self.steps_by_the_loss:
            with pytest.raises(ValueError, match=f"{type(optimizer).__name__} needs the loss"):
                optimizer.step()

    def test_nothing_to_optimise_is_refused(self, make: MakeOptimizer) -> None:
        with pytest.raises(ValueError, match="empty"):
            make([])

    def test_closure_is_run_with_gradients_and_its_loss_returned(self, make: MakeOptimizer) -> None:
        problem = Quadratic()
        optimizer = make(problem.parameters)
        before = problem.values()
        expected = float(problem.loss().detach())
        with torch.no_grad():  # as Lightning may: the optimizer itself turns gradients on for the closure
            assert problem.step(optimizer) == pytest.approx(expected)
        assert any(not torch.equal(a, b) for a, b in zip(before, problem.values(), strict=True))

    @staticmethod
    def run(make: MakeOptimizer, steps: int) -> list[Tensor]:
        return values_after(make, steps)


class OptimizerReferenceContract:
    """Agreement with an independent implementation; to be inherited beside :class:`OptimizerContract`, or by itself.

    Give:
        make: fixture; :data:`MakeOptimizer`.
        reference: fixture; a function (theta, gradient, state) -> theta of float64 tensors, which keeps what it needs in ``state`` (a
            dict, empty at first) and is applied to each parameter by itself.

    Attributes:
        tolerance: largest absolute difference after 20 steps.
    """

    tolerance: float = 1e-10

    @pytest.fixture
    def make(self) -> MakeOptimizer:
        raise NotImplementedError("an OptimizerReferenceContract needs a fixture `make`: (parameters, **options) -> optimizer")

    @pytest.fixture
    def reference(self) -> Callable[[Tensor, Tensor, dict[str, Any]], Tensor]:
        raise NotImplementedError("an OptimizerReferenceContract needs a fixture `reference`: (theta, gradient, state) -> theta")

    def test_agrees_with_the_reference(self, make: MakeOptimizer, reference: Callable[[Tensor, Tensor, dict[str, Any]], Tensor]) -> None:
        problem = Quadratic()
        optimizer = make(problem.parameters)
        theta = problem.values()
        states: list[dict[str, Any]] = [{} for _ in theta]
        for step in range(20):
            gradients = [h * (p - c) for p, c, h in zip(theta, problem.centres, problem.curvatures, strict=True)]
            theta = [reference(p, g, state) for p, g, state in zip(theta, gradients, states, strict=True)]
            problem.step(optimizer)
            for ours, expected in zip(problem.values(), theta, strict=True):
                difference = float((ours - expected).abs().max())
                assert difference <= self.tolerance, f"step {step}: differs by {difference}"


def through_a_file(value: Any) -> Any:
    """What a checkpoint makes of a value: written, and read with ``weights_only=True``."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def values_after(make: MakeOptimizer, steps: int, **options: Any) -> list[Tensor]:
    """Where so many steps on a :class:`Quadratic` lead."""
    problem = Quadratic()
    optimizer = make(problem.parameters, **options)
    for _ in range(steps):
        problem.step(optimizer)
    return problem.values()


def assert_close(left: Iterable[Tensor], right: Iterable[Tensor], tolerance: float = 1e-12) -> None:
    """Equal to within ``tolerance``, absolute."""
    for one, other in zip(left, right, strict=True):
        assert float((one - other).abs().max()) <= tolerance


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    """Equal to the last bit."""
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one, other), f"differ by up to {float((one - other).abs().max())}"


def assert_equal_trees(left: Any, right: Any) -> None:
    """Nested dictionaries and sequences of equal shape with bit-equal tensors and equal values."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal_trees(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_equal_trees(one, other)
    elif isinstance(left, Tensor):
        assert_same([left], [right])
    else:
        assert left == right
