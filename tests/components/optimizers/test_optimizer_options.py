"""Every option of conf/optimizer goes through the public trials, and the simple ones against an independent update."""

import copy
import inspect
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf

from components.optimizers import GradientOptimizer, OrthoGrad, base
from components.testing.optimizers import MakeOptimizer, OptimizerContract, OptimizerReferenceContract, Quadratic, assert_same

CONF = Path(__file__).parents[3] / "conf" / "optimizer"
OPTIONS = sorted(p.stem for p in CONF.glob("*.yaml"))
LOSS_AWARE = ["momo", "momo_adam", "normalized_gd"]
ANCHORED = ["aog", "implicit_ftrl"]
MODAL = ["schedule_free_adamw", "schedule_free_sgd"]
PECULIAR = [*MODAL, "asgd", "rprop", "lbfgs", *LOSS_AWARE, *ANCHORED]
NOT_FOR_CONFIGS = {"params", "foreach", "fused", "maximize", "capturable", "differentiable", "total_steps"}


def option(name: str) -> tuple[Callable[..., torch.optim.Optimizer], dict]:
    """What an option file makes, a class or a function, and with which options."""
    node = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    node.pop("decay_only_matrices", None)
    node.pop("defaults", None)
    return get_object(node.pop("_target_")), node


def maker(name: str) -> MakeOptimizer:
    cls, options = option(name)
    return partial(cls, **options)


class OptionContract(OptimizerContract):
    """The public trials on an option file, and that the file is complete."""

    @pytest.fixture
    def make(self, name: str) -> MakeOptimizer:
        return maker(name)

    def test_option_file_lists_every_option(self, name):
        cls, options = option(name)
        assert (CONF / f"{name}.yaml").read_text().startswith("# ")
        assert set(options) == set(inspect.signature(cls).parameters) - NOT_FOR_CONFIGS

    def test_decay_only_matrices_is_offered_where_there_is_decay(self, name):
        _, options = option(name)
        assert ("decay_only_matrices" in OmegaConf.load(CONF / f"{name}.yaml")) == ("weight_decay" in options)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in PECULIAR])
class TestOption(OptionContract):
    pass


@pytest.mark.parametrize("name", ["asgd"])
class TestASGD(OptionContract):
    lr_delay = 1


@pytest.mark.parametrize("name", ["rprop"])
class TestRprop(OptionContract):
    uses_lr_at_every_step = False


@pytest.mark.parametrize("name", LOSS_AWARE)
class TestLossAware(OptionContract):
    steps_by_the_loss = True


@pytest.mark.parametrize("name", ["aog"])
class TestAOG(OptionContract):
    rests_at_zero_rate = False


@pytest.mark.parametrize("name", ["implicit_ftrl"])
class TestImplicitFTRL(OptionContract):
    rests_at_zero_rate = False
    steps_by_the_loss = True


@pytest.mark.parametrize("name", MODAL)
class TestScheduleFree(OptionContract):
    """In the mode for training; how a run changes modes is in tests/components/callbacks/test_optimizer_modes.py."""

    rests_at_zero_rate = False  # y goes on towards z

    @pytest.fixture
    def make(self, name: str) -> MakeOptimizer:
        def training(*args, **options):
            optimizer = maker(name)(*args, **options)
            optimizer.train()
            return optimizer

        return training


@pytest.mark.parametrize("name", ["lbfgs"])
class TestLBFGS(OptionContract):
    several_groups = False
    reads_missing_gradients_as_zero = True


# -- independent updates: the defaults of the option files, straight from the papers ------------------------------------
def sgd(theta, g, s):
    s["v"] = 0.9 * s["v"] + g if "v" in s else g
    return theta - 0.05 * s["v"]


def moments(g, s, beta1=0.9, beta2=0.999):
    s["t"] = s.get("t", 0) + 1
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g**2
    return s["t"], s["m"], s["v"]


def adam(theta, g, s, lr=1e-3):
    t, m, v = moments(g, s)
    return theta - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


def adamw(theta, g, s):
    return adam(theta, g, s) - 1e-3 * 0.01 * theta


def nadam(theta, g, s):
    t, m, v = moments(g, s)
    mu, mu_next = (0.9 * (1 - 0.5 * 0.96 ** (k * 0.004)) for k in (t, t + 1))
    s["product"] = s.get("product", 1.0) * mu
    m_hat = mu_next * m / (1 - s["product"] * mu_next) + (1 - mu) * g / (1 - s["product"])
    return theta - 2e-3 * m_hat / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


def radam(theta, g, s):
    t, m, v = moments(g, s)
    m_hat = m / (1 - 0.9**t)
    longest = 2 / (1 - 0.999) - 1
    length = longest - 2 * t * 0.999**t / (1 - 0.999**t)
    if length <= 5:
        return theta - 1e-3 * m_hat
    rectification = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    return theta - 1e-3 * m_hat * rectification * math.sqrt(1 - 0.999**t) / (v.sqrt() + 1e-8)


def rmsprop(theta, g, s):
    s["v"] = 0.99 * s.get("v", 0.0) + 0.01 * g**2
    return theta - 1e-3 * g / (s["v"].sqrt() + 1e-8)


def adagrad(theta, g, s):
    s["sum"] = s.get("sum", 0.0) + g**2
    return theta - 0.01 * g / (s["sum"].sqrt() + 1e-10)


def adadelta(theta, g, s):
    s["v"] = 0.9 * s.get("v", 0.0) + 0.1 * g**2
    delta = ((s.get("u", torch.zeros_like(g)) + 1e-6) / (s["v"] + 1e-6)).sqrt() * g
    s["u"] = 0.9 * s.get("u", 0.0) + 0.1 * delta**2
    return theta - delta


def adamax(theta, g, s):
    s["t"] = s.get("t", 0) + 1
    s["m"] = 0.9 * s.get("m", 0.0) + 0.1 * g
    s["u"] = torch.maximum(0.999 * s.get("u", torch.zeros_like(g)), g.abs() + 1e-8)
    return theta - 2e-3 / (1 - 0.9 ** s["t"]) * s["m"] / s["u"]


def asgd(theta, g, s):
    s["t"] = s.get("t", 0) + 1
    eta = 0.01 / (1 + 1e-4 * 0.01 * (s["t"] - 1)) ** 0.75
    return theta * (1 - 1e-4 * eta) - eta * g


def rprop(theta, g, s):
    size, last = s.get("size", torch.full_like(g, 0.01)), s.get("g", torch.zeros_like(g))
    agree = (g * last).sign()
    s["size"] = torch.where(agree > 0, size * 1.2, torch.where(agree < 0, size * 0.5, size)).clamp(1e-6, 50)
    s["g"] = torch.where(agree < 0, 0.0, g)
    return theta - s["g"].sign() * s["size"]


def adafactor(theta, g, s):
    s["t"] = t = s.get("t", 0) + 1
    keep = 1 - t**-0.8
    rate = min(0.01, 1 / math.sqrt(t)) * max(1e-3, float(theta.norm() / math.sqrt(theta.numel())))
    if g.ndim == 2:
        s["rows"] = keep * s.get("rows", 0.0) + (1 - keep) * (g**2).mean(1, keepdim=True)
        s["columns"] = keep * s.get("columns", 0.0) + (1 - keep) * (g**2).mean(0, keepdim=True)
        second = s["rows"] * s["columns"] / s["rows"].mean()
    else:
        second = s["v"] = keep * s.get("v", 0.0) + (1 - keep) * g**2
    update = g / second.sqrt()
    return theta - rate * update / max(1.0, float(update.norm() / math.sqrt(update.numel())))


@pytest.mark.parametrize("reference", [sgd, adam, adamw, nadam, radam, rmsprop, adagrad, adadelta, adamax, rprop, adafactor], ids=lambda f: f.__name__)
class TestReference(OptimizerReferenceContract):
    @pytest.fixture
    def make(self, reference) -> MakeOptimizer:
        return maker(reference.__name__)


class TestASGDReference(OptimizerReferenceContract):
    tolerance = 1e-8  # torch keeps its step size in float32

    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return maker("asgd")

    @pytest.fixture
    def reference(self):
        return asgd


def test_every_optimizer_of_torch_has_an_option():
    ours = {option(name)[0].__name__ for name in OPTIONS} | {"Muon"}  # as MuonWithAuxAdamW
    needs_sparse_gradients = {"SparseAdam"}
    torchs = {n for n, c in vars(torch.optim).items() if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer) and c is not torch.optim.Optimizer}
    assert torchs - needs_sparse_gradients <= ours


OURS = [name for name in OPTIONS if inspect.isclass(option(name)[0]) and issubclass(option(name)[0], GradientOptimizer | OrthoGrad)]


@pytest.mark.parametrize("name", OURS)
class TestOurs:
    def test_a_step_reads_nothing_back_from_the_device(self, name):
        # a meta tensor has no values: a step that looks at one, as .item() or an `if` would, fails
        parameters = [torch.zeros(shape, device="meta", requires_grad=True) for shape in [(6, 4), (4, 6), (5,)]]
        optimizer = maker(name)(parameters)

        def closure():
            for p in parameters:
                p.grad = torch.empty_like(p)
            return torch.empty((), device="meta")

        for _ in range(3):
            optimizer.step(closure)

    def test_sparse_gradients_are_refused_in_words(self, name):
        theta = torch.zeros(4, 2, requires_grad=True)
        theta.grad = torch.sparse_coo_tensor([[1]], [[1.0, 2.0]], (4, 2), check_invariants=True)
        optimizer = maker(name)([theta])
        with pytest.raises(ValueError, match=f"{type(optimizer).__name__} takes dense gradients.*sparse"):
            optimizer.step(lambda: 1.0)

    def test_parameters_go_together_or_in_portions(self, name, monkeypatch):
        together = OptimizerContract.run(maker(name), 5)
        monkeypatch.setattr(base, "CACHED_ELEMENTS", 1)
        for one, other in zip(together, OptimizerContract.run(maker(name), 5), strict=True):
            assert float((one - other).abs().max()) < 1e-12

    def test_copies_step_alike(self, name):
        problem = Quadratic()
        optimizer = maker(name)(problem.parameters)
        problem.step(optimizer)
        again, twin = copy.deepcopy((problem, optimizer))
        problem.step(optimizer)
        again.step(twin)
        assert_same(problem.values(), again.values())

    def test_half_precision_weights_stay_finite(self, name):
        problem = Quadratic(dtype=torch.bfloat16)
        optimizer = maker(name)(problem.parameters)
        for _ in range(5):
            problem.step(optimizer)
        assert all(bool(p.isfinite().all()) and p.dtype == torch.bfloat16 for p in problem.parameters)
