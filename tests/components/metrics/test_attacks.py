import pytest
import torch
from torch import Tensor, nn

from components.metrics import AttackedAccuracy


def linear() -> nn.Linear:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    return layer


class TestAttackedAccuracy:
    INPUTS = torch.tensor([[1.0, 1.0], [0.2, 0.1], [-0.5, 0.1], [0.1, -0.4]])
    TARGET = torch.tensor([0, 0, 1, 0])  # margins of x1 + x2: 2, 0.3, 0.4, and a wrong one

    @pytest.mark.parametrize(("gamma", "expected"), [(0.0, 0.75), (0.14, 0.75), (0.16, 0.5), (0.21, 0.25), (1.1, 0.0)])
    def test_of_a_linear_model_the_margin_falls_by_gamma_times_its_l1_norm(self, gamma: float, expected: float) -> None:
        metric = AttackedAccuracy(gamma)
        metric.update(linear(), self.INPUTS, self.TARGET)
        assert metric.compute() == expected

    def test_leaves_the_model_alone(self) -> None:
        model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        values: list[Tensor] = []
        for _ in range(2):
            metric = AttackedAccuracy(0.3)
            with torch.inference_mode():
                metric.update(model, self.INPUTS, self.TARGET)
            values.append(metric.compute())
        assert values[0] == values[1]
        assert model.training and all(p.grad is None for p in model.parameters())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="gamma must be >= 0"):
            AttackedAccuracy(-0.1)
        with pytest.raises(ValueError, match="steps must be >= 1"):
            AttackedAccuracy(steps=0)
