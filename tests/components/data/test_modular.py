import pytest
import torch

from components.data import ModularAddition


class TestModularAddition:
    @pytest.mark.parametrize(("operation", "of_four_and_two"), [("addition", 1), ("subtraction", 2), ("multiplication", 3)])
    def test_every_pair_once(self, operation: str, of_four_and_two: int) -> None:
        samples = ModularAddition(modulus=5, operation=operation).read()
        assert samples.inputs.shape == (25, 10) and (samples.inputs.sum(1) == 2).all()
        assert len(samples.inputs.unique(dim=0)) == 25
        pair = torch.zeros(10)
        pair[[4, 5 + 2]] = 1
        assert samples.target[(samples.inputs == pair).all(1)].tolist() == [of_four_and_two]

    def test_training_sees_two_fifths(self) -> None:
        data = ModularAddition(modulus=11, val_fraction=0.3, test_fraction=0.3, batch_size=16)
        data.setup()
        assert data.facts()["num_classes"] == 11
        assert data.facts()["num_samples"] == pytest.approx(0.4 * 121, abs=1)
        assert min(data.facts()["class_counts"]) >= 3

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="modulus must be >= 2, but got 1"):
            ModularAddition(modulus=1)
        with pytest.raises(ValueError, match=r"operation must be one of .*did you mean 'addition'"):
            ModularAddition(operation="addtion")
