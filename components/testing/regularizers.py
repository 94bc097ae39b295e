"""The trials that every regularizer passes. Inherit them for your own and give one fixture::

    class TestMyPenalty(RegularizerContract):
        @pytest.fixture
        def regularizer(self):
            return MyPenalty(strength=2)
"""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components.binding import bind, requirements
from components.models.base import ModelOutput
from components.quantities import QUANTITIES, Quantities


class SmallNet(nn.Module):
    """A smooth classifier of three classes with features, small enough for finite differences: 6 -> 5 -> 3."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 3)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, inputs: Tensor) -> ModelOutput:
        features = self.body(inputs).tanh()
        return ModelOutput(self.head(features), features)


class RegularizerContract:
    """Give the fixture ``regularizer``, a fresh instance. Override :meth:`quantities` where it asks for more than this offers."""

    @pytest.fixture
    def regularizer(self) -> nn.Module:
        raise NotImplementedError("give a fixture named regularizer that returns a fresh instance of yours")

    def quantities(self, model: nn.Module, repeat: int = 1, device: str = "cpu") -> Quantities:
        """What a classification task would offer for a batch of ``4 * repeat`` samples (the same four, repeated)."""
        dtype = next(model.parameters()).dtype
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).to(device, dtype).repeat(repeat, 1)
        target = torch.tensor([0, 1, 2, 1], device=device).repeat(repeat)
        output = model(inputs)
        return Quantities(
            inputs=inputs,
            index=torch.arange(len(target), device=device),
            target=target,
            target_multi_hot=torch.eye(3, dtype=dtype, device=device)[target],
            logits=output.output,
            features=output.features,
            embeddings=output.features,
            model=model,
            step=0,
            epoch=0,
        )

    def value(self, regularizer: nn.Module, model: nn.Module, *, seed: int = 0, **options: Any) -> Tensor:
        """The regularizer on the model's quantities, with the global random state at ``seed``."""
        torch.manual_seed(seed)
        return evaluate(regularizer, self.quantities(model, **options))

    # -- the trials -----------------------------------------------------------------------------------------------------
    def test_asks_for_quantities_of_the_vocabulary(self, regularizer: nn.Module) -> None:
        required, optional = requirements(regularizer.forward)
        unknown = [name for name in required + optional if name not in QUANTITIES]
        assert required, "forward must ask for at least one quantity"
        assert not unknown, f"forward asks for {unknown}, which components.quantities.QUANTITIES does not know"

    def test_is_a_finite_scalar_on_the_graph(self, regularizer: nn.Module) -> None:
        value = self.value(regularizer, SmallNet())
        assert value.shape == (), f"a regularizer is a scalar, this is of shape {tuple(value.shape)}"
        assert math.isfinite(value.item())
        assert value.requires_grad, "no gradient reaches the model"

    def test_lies_above_its_lower_bound(self, regularizer: nn.Module) -> None:
        bound = getattr(regularizer, "lower_bound", -math.inf)
        for seed in range(5):
            assert self.value(regularizer, SmallNet(seed), seed=seed).item() >= bound

    def test_gradient_is_the_values_derivative(self, regularizer: nn.Module) -> None:
        """By central differences in float64 along three random directions; state that adapts from step to step settles first."""
        model = SmallNet().double()
        regularizer.double()
        self.value(regularizer, model)
        for _ in range(200 if list(regularizer.buffers()) else 0):
            self.value(regularizer, model)
        regularizer.eval()
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(self.value(regularizer, model), parameters, allow_unused=True)
        assert any(g is not None and bool(g.ne(0).any()) for g in gradients), "the gradient is zero everywhere"
        width = 1e-5
        for seed in range(3):
            directions = [torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(seed)) for p in parameters]
            expected = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None)
            ends = []
            for sign in (1, -1):
                moved = copy.deepcopy(model)
                with torch.no_grad():
                    for parameter, direction in zip(moved.parameters(), directions, strict=True):
                        parameter.add_(direction, alpha=sign * width)
                ends.append(self.value(regularizer, moved).item())
            assert (ends[0] - ends[1]) / (2 * width) == pytest.approx(expected, rel=1e-5, abs=1e-7)

    def test_is_a_mean_over_the_batch(self, regularizer: nn.Module) -> None:
        """The same batch twice over has the same value (on average, where it is random)."""
        regularizer.eval()
        model = SmallNet()
        draws = 1 if self.value(regularizer, model, seed=0).item() == self.value(regularizer, model, seed=1).item() else 600
        once, twice = (sum(self.value(regularizer, model, seed=s, repeat=r).item() for s in range(draws)) / draws for r in (1, 2))
        assert twice == pytest.approx(once, rel=1e-5 if draws == 1 else 0.1)

    def test_changes_nothing_it_is_given(self, regularizer: nn.Module) -> None:
        model = SmallNet()
        quantities = self.quantities(model)
        before = {name: value.detach().clone() for name, value in quantities.items() if isinstance(value, Tensor)}
        state = copy.deepcopy(model.state_dict())
        evaluate(regularizer, quantities).backward()
        for name, value in before.items():
            assert torch.equal(quantities[name], value), f"{name} was changed in place"
        for name, value in model.state_dict().items():
            assert torch.equal(state[name], value), f"the model's {name} was changed"

    def test_same_seed_same_bits(self, regularizer: nn.Module) -> None:
        first, second = (self.value(copy.deepcopy(regularizer), SmallNet(), seed=5) for _ in range(2))
        assert torch.equal(first, second)

    def test_a_model_of_zeros_gives_no_nan(self, regularizer: nn.Module) -> None:
        model = SmallNet()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        value = self.value(regularizer, model)
        value.backward()
        assert math.isfinite(value.item())
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_large_values_stay_finite(self, regularizer: nn.Module, dtype: torch.dtype) -> None:
        """Outputs of ±10,000, and weights a hundred times their size, in single and half precision."""
        model = SmallNet().to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(100)
        quantities = self.quantities(model)
        leaves = {n: (1e4 * torch.sign(quantities[n].detach())).requires_grad_() for n in ("logits", "features", "embeddings") if n in quantities}
        value = evaluate(regularizer, quantities.replace(**leaves))
        value.backward()
        assert math.isfinite(value.item())
        for leaf in [*leaves.values(), *model.parameters()]:
            assert leaf.grad is None or bool(leaf.grad.isfinite().all())

    def test_a_checkpoint_holds_its_state(self, regularizer: nn.Module) -> None:
        """Saved after three steps and loaded into a fresh one (``weights_only=True``), it goes on with the same bits."""
        fresh = copy.deepcopy(regularizer)
        for seed in range(3):
            self.value(regularizer, SmallNet(seed), seed=seed)
        file = io.BytesIO()
        torch.save(regularizer.state_dict(), file)
        file.seek(0)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        for seed in (3, 4):
            assert torch.equal(self.value(regularizer, SmallNet(seed), seed=seed), self.value(fresh, SmallNet(seed), seed=seed))

    def test_never_waits_for_the_device(self, regularizer: nn.Module) -> None:
        """It runs on tensors without data, where ``.item()``, ``float(tensor)`` and branches on values are errors."""
        value = self.value(regularizer.to("meta"), SmallNet().to("meta"), device="meta")
        assert value.shape == ()

    def test_is_documented(self, regularizer: nn.Module) -> None:
        assert_documented(type(regularizer))


def evaluate(component: nn.Module, quantities: Quantities) -> Any:
    """Bind the component to the quantities' names and call it."""
    return bind(component, quantities, name=type(component).__name__, task="the contract's")(quantities)


def assert_documented(component: type) -> None:
    """The docstring has a first line, a formula, shapes, the source, and where the constructor takes arguments, these."""
    text = component.__doc__ or ""
    arguments = [name for names in requirements(component) for name in names]
    parts = [".. math::", "Shapes:", "Source:", *(["Args:", "Raises:"] if arguments else []), *(f"{name}:" for name in arguments)]
    missing = [part for part in parts if part not in text]
    assert text.strip().split("\n")[0].endswith(".") or ":" in text.split("\n")[0], f"{component.__name__} needs a first line that says what it is for"
    assert not missing, f"the docstring of {component.__name__} lacks {missing}"
