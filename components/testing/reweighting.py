"""The trials that every reweighter passes. Inherit them for your own and give one fixture::

    class TestMyWeights(ReweightingContract):
        @pytest.fixture
        def reweighter(self):
            return MyWeights()
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from components.binding import requirements
from components.quantities import QUANTITIES, Quantities
from components.testing.regularizers import assert_documented, evaluate


class ReweightingContract:
    """Give the fixture ``reweighter``, a fresh instance for three classes. Override :meth:`quantities` where it asks for more."""

    @pytest.fixture
    def reweighter(self) -> nn.Module:
        raise NotImplementedError("give a fixture named reweighter that returns a fresh instance of yours")

    def quantities(self, device: str = "cpu") -> Quantities:
        """What a classification task would offer for six samples of three classes, with the loss of each sample."""
        generator = torch.Generator().manual_seed(0)
        target = torch.tensor([0, 1, 2, 2, 1, 0])
        inputs, logits = torch.randn(6, 4, generator=generator), torch.randn(6, 3, generator=generator, requires_grad=True)
        tensors = {
            "inputs": inputs,
            "index": torch.arange(6),
            "target": target,
            "features": inputs,
            "logits": logits,
            "training_losses": torch.stack([inputs[:, 0].exp(), inputs[:, 1].exp()]),
            "per_sample_loss": nn.functional.cross_entropy(logits, target, reduction="none"),
        }
        return Quantities({name: tensor.to(device) for name, tensor in tensors.items()}, step=3, epoch=1)

    def test_asks_for_quantities_of_the_vocabulary(self, reweighter: nn.Module) -> None:
        required, optional = requirements(reweighter.forward)
        unknown = [name for name in required + optional if name not in QUANTITIES]
        assert not unknown, f"forward asks for {unknown}, which components.quantities.QUANTITIES does not know"

    def test_gives_one_weight_a_sample(self, reweighter: nn.Module) -> None:
        weights = evaluate(reweighter, self.quantities())
        assert weights.shape == (6,), f"one weight a sample is (6,), this is {tuple(weights.shape)}"
        assert bool(weights.isfinite().all())
        assert bool((weights >= 0).all())
        assert bool((weights > 0).any())

    def test_no_gradient_passes_through_the_weights(self, reweighter: nn.Module) -> None:
        weights = evaluate(reweighter, self.quantities())
        assert not weights.requires_grad, "weights must be detached: else training makes them small instead of the losses"

    def test_changes_nothing_it_is_given(self, reweighter: nn.Module) -> None:
        quantities = self.quantities()
        before = {name: value.detach().clone() for name, value in quantities.items() if isinstance(value, Tensor)}
        evaluate(reweighter, quantities)
        for name, value in before.items():
            assert torch.equal(quantities[name], value), f"{name} was changed in place"

    def test_a_checkpoint_holds_its_state(self, reweighter: nn.Module) -> None:
        fresh = copy.deepcopy(reweighter)
        for _ in range(3):
            evaluate(reweighter, self.quantities())
        fresh.load_state_dict(reweighter.state_dict())
        torch.manual_seed(0)
        expected = evaluate(reweighter, self.quantities())
        torch.manual_seed(0)
        assert torch.equal(evaluate(fresh, self.quantities()), expected)

    def test_never_waits_for_the_device(self, reweighter: nn.Module) -> None:
        """It runs on tensors without data, where ``.item()``, ``float(tensor)`` and branches on values are errors."""
        assert evaluate(reweighter.to("meta"), self.quantities("meta")).shape == (6,)

    def test_is_documented(self, reweighter: nn.Module) -> None:
        assert_documented(type(reweighter))
