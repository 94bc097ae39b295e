import sys
from functools import partial

import pytest
import torch

from components.optimizers import schedule_free_adamw, schedule_free_sgd
from components.testing.optimizers import MakeOptimizer, OptimizerReferenceContract, Quadratic
from losskit_cli.compose import Composer


def reference_of(step):
    """The three sequences of the paper, of one parameter."""

    def update(y, g, s):
        s["t"] = t = s.get("t", 0) + 1
        x, z = s.get("x", y), s.get("z", y)
        s["z"] = z - step(y, g, s, t)
        s["x"] = x + (s["z"] - x) / t
        return 0.1 * s["z"] + 0.9 * s["x"]

    return update


class TestSGD(OptimizerReferenceContract):
    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return partial(trained, schedule_free_sgd, lr=0.2, weight_decay=0.1)

    @pytest.fixture
    def reference(self):
        return reference_of(lambda y, g, s, t: 0.2 * (g + 0.1 * y))


class TestAdamW(OptimizerReferenceContract):
    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return partial(trained, schedule_free_adamw, lr=0.02, betas=(0.9, 0.95), weight_decay=0.1)

    @pytest.fixture
    def reference(self):
        def step(y, g, s, t):
            s["v"] = 0.95 * s.get("v", 0.0) + 0.05 * g**2
            return 0.02 * (g / ((s["v"] / (1 - 0.95**t)).sqrt() + 1e-8) + 0.1 * y)

        return reference_of(step)


def trained(make, *args, **options):
    optimizer = make(*args, **options)
    optimizer.train()
    return optimizer


def test_a_constant_rate_comes_as_near_as_a_schedule():
    """Noisy gradients: at a constant rate plain SGD stays away from the minimum, the mean of the steps comes near."""

    def distance(make) -> float:
        problem, noise = Quadratic(), torch.Generator().manual_seed(0)
        optimizer = make(problem.parameters)
        for _ in range(2000):
            for p, c, h in zip(problem.parameters, problem.centres, problem.curvatures, strict=True):
                p.grad = h * (p.detach() - c) + torch.randn(p.shape, dtype=p.dtype, generator=noise)
            optimizer.step()
        if hasattr(optimizer, "eval"):
            optimizer.eval()
        return float(problem.loss().detach())

    assert distance(partial(trained, schedule_free_sgd, lr=0.2)) < 0.1 * distance(partial(torch.optim.SGD, lr=0.2))


@pytest.mark.parametrize("option", ["schedule_free_adamw", "schedule_free_sgd"])
def test_the_options_choose_a_constant_rate_which_the_user_may_change(option):
    for given, expected in (([], "Constant"), (["schedule=linear"], "Linear")):
        config = Composer().compose([f"optimizer={option}", *given]).resolved()
        assert config["schedule"]["_target_"] == f"components.schedules.{expected}"
        assert config["optimizer"]["_target_"] == f"components.optimizers.{option}"


@pytest.mark.parametrize("make", [schedule_free_adamw, schedule_free_sgd])
def test_a_missing_package_is_named_with_the_command(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ValueError, match=f"optimizer={make.__name__} needs the package schedulefree: pip install schedulefree"):
        make(Quadratic().parameters)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (schedule_free_adamw, {"betas": (0.0, 0.999)}, "the first above 0.*0.0"),
        (schedule_free_adamw, {"warmup_steps": -1}, "warmup_steps.*-1"),
        (schedule_free_sgd, {"momentum": 0.0}, r"momentum must be in \(0, 1\).*0.0"),
        (schedule_free_sgd, {"r": -1.0}, "r must be >= 0.*-1.0"),
        (schedule_free_sgd, {"weight_lr_power": -1.0}, "weight_lr_power.*-1.0"),
    ],
)
def test_wrong_options_are_refused_by_name(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(Quadratic().parameters, **options)
