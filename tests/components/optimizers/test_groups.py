import pytest
import torch
from torch import nn

from components.optimizers import parameter_groups


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3), nn.LayerNorm(3))


class TestParameterGroups:
    def test_matrices_and_kernels_decay_biases_and_norms_do_not(self, model):
        decaying, rest = parameter_groups(model, 0.1)
        assert {id(p) for p in decaying["params"]} == {id(model[0].weight), id(model[3].weight)} and decaying["weight_decay"] == 0.1
        assert len(rest["params"]) == 6 and rest["weight_decay"] == 0.0

    def test_every_parameter_once_in_order(self, model):
        groups = parameter_groups(list(model.parameters()), 0.1)
        grouped = [id(p) for group in groups for p in group["params"]]
        assert sorted(grouped) == sorted(id(p) for p in model.parameters())

    def test_frozen_parameters_of_a_module_are_left_out(self, model):
        model[0].requires_grad_(False)
        assert sum(len(group["params"]) for group in parameter_groups(model, 0.1)) == 6

    def test_empty_groups_are_left_out(self):
        assert len(parameter_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1

    def test_groups_keep_their_options(self, model):
        groups = parameter_groups([{"params": list(model[3].parameters()), "lr": 0.5}], 0.1)
        assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.5, 0.1), (0.5, 0.0)]

    def test_what_it_does_in_training(self):
        layer = nn.Linear(3, 2)
        with torch.no_grad():
            layer.weight.fill_(1.0)
            layer.bias.fill_(1.0)
        optimizer = torch.optim.SGD(parameter_groups(layer, 0.5), lr=0.1, weight_decay=0.5)
        for parameter in layer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert torch.equal(layer.bias, torch.ones(2)) and torch.allclose(layer.weight, torch.full((2, 3), 0.95))

    def test_negative_decay_is_refused(self, model):
        with pytest.raises(ValueError, match=r"weight_decay must be >= 0, but got -0\.1"):
            parameter_groups(model, -0.1)
