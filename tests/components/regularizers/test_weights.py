import itertools
import math

import pytest
import torch
from torch import nn

from components.regularizers import L1, L2, GroupLasso, Spectral
from components.regularizers.base import weight_matrices


def linear(rows: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


class TestParameterNorms:
    def test_worked_values(self):
        model = linear([[1.0, -2.0], [0.0, 3.0]], bias=[10.0, -10.0])
        assert L1()(model).item() == 6.0
        assert L2()(model).item() == 14.0
        assert L1(include="all")(model).item() == 26.0
        assert L2(include="all")(model).item() == 214.0

    def test_weights_leave_out_biases_and_scales(self):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        assert L1()(model).item() == pytest.approx(model[0].weight.abs().sum().item())

    def test_frozen_parameters_do_not_count(self):
        model = nn.Sequential(linear([[1.0, 1.0]]), linear([[5.0]]))
        model[1].weight.requires_grad_(False)
        assert L1()(model).item() == 2.0

    def test_tied_weights_count_once(self):
        model = nn.Sequential(linear([[1.0, 1.0], [1.0, 1.0]]), nn.Linear(2, 2, bias=False))
        model[1].weight = model[0].weight
        assert L1()(model).item() == 4.0
        assert GroupLasso(scale_by_size=False)(model).item() == pytest.approx(2 * math.sqrt(2))

    def test_gradient_of_l1_is_the_sign_and_zero_at_zero(self):
        model = linear([[1.0, -2.0, 0.0]])
        L1()(model).backward()
        assert model.weight.grad.tolist() == [[1.0, -1.0, 0.0]]

    def test_l2_is_weight_decay_of_plain_sgd(self):
        decayed, regularized = linear([[1.0, -2.0]]), linear([[1.0, -2.0]])
        inputs = torch.tensor([[0.3, 0.7]])
        for model, decay, strength in ((decayed, 0.1, 0.0), (regularized, 0.0, 0.05)):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=decay)
            (model(inputs).sum() + strength * L2()(model)).backward()
            optimizer.step()
        torch.testing.assert_close(decayed.weight, regularized.weight)

    def test_half_precision_weights_are_summed_in_single(self):
        model = nn.Linear(1000, 30, bias=False).to(torch.bfloat16)
        nn.init.ones_(model.weight)
        assert L1()(model).item() == 30_000  # bfloat16 would round at 256 already
        assert L1()(model).dtype == torch.float32

    @pytest.mark.parametrize("cls", [L1, L2])
    def test_refuses_what_selects_nothing(self, cls):
        with pytest.raises(ValueError, match="include must be one of weights, all, but got 'weight'; did you mean 'weights'"):
            cls(include="weight")
        with pytest.raises(ValueError, match="include='weights' selects none"):
            cls()(nn.BatchNorm1d(3))


class TestGroupLasso:
    def test_worked_value(self):
        assert GroupLasso()(linear([[3.0, 4.0]])).item() == pytest.approx(5 * math.sqrt(2))
        assert GroupLasso(scale_by_size=False)(linear([[3.0, 4.0]])).item() == pytest.approx(5)

    def test_input_groups_are_columns(self):
        model = linear([[3.0, 0.0], [4.0, 2.0]])
        assert GroupLasso("inputs", scale_by_size=False)(model).item() == pytest.approx(5 + 2)
        assert GroupLasso("outputs", scale_by_size=False)(model).item() == pytest.approx(3 + math.sqrt(20))

    def test_a_filter_is_a_group(self):
        conv = nn.Conv2d(3, 4, 5, bias=False)
        expected = sum(conv.weight[i].square().sum().sqrt().item() for i in range(4)) * math.sqrt(3 * 5 * 5)
        assert GroupLasso()(conv).item() == pytest.approx(expected, rel=1e-5)

    def test_output_filters_of_a_transposed_convolution(self):
        conv = nn.ConvTranspose2d(3, 4, 2, bias=False)
        expected = sum(conv.weight[:, i].square().sum().sqrt().item() for i in range(4))
        assert GroupLasso(scale_by_size=False)(conv).item() == pytest.approx(expected, rel=1e-5)
        assert next(weight_matrices(conv))[1].shape == (4, 3 * 2 * 2)
        assert next(weight_matrices(conv, "inputs"))[1].shape == (3, 4 * 2 * 2)

    def test_a_dead_group_stays_without_gradient(self):
        model = linear([[0.0, 0.0], [3.0, 4.0]])
        GroupLasso(scale_by_size=False)(model).backward()
        torch.testing.assert_close(model.weight.grad, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))

    def test_proximal_steps_empty_whole_units(self):
        """Minimised beside a loss that needs one of two units only, the other one's whole row goes to (about) zero."""
        torch.manual_seed(0)
        inputs = torch.randn(64, 3)
        target = inputs @ torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]]).T
        model = nn.Linear(3, 2, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(600):
            optimizer.zero_grad()
            (nn.functional.mse_loss(model(inputs), target) + 0.05 * GroupLasso()(model)).backward()
            optimizer.step()
        lengths = model.weight.norm(dim=1)
        assert lengths[1] < 0.01
        assert lengths[0] > 1.5

    def test_refuses(self):
        with pytest.raises(ValueError, match="groups must be one of outputs, inputs, but got 'rows'"):
            GroupLasso(groups="rows")
        with pytest.raises(ValueError, match="two dimensions"):
            GroupLasso()(nn.BatchNorm1d(3))


class TestSpectral:
    def test_agrees_with_the_singular_value_decomposition(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Conv2d(2, 3, 3), nn.ConvTranspose2d(2, 3, 3))
        regularizer = Spectral(iterations=500)
        matrices = [model[0].weight, model[2].weight.flatten(1), model[3].weight.transpose(0, 1).flatten(1)]
        expected = sum(torch.linalg.matrix_norm(w, 2).square() for w in matrices)
        torch.testing.assert_close(regularizer(model), expected)

    def test_gradient_is_that_of_the_largest_singular_value(self):
        torch.manual_seed(0)
        model = nn.Linear(6, 4)
        Spectral(iterations=500)(model).backward()
        u, s, v = torch.linalg.svd(model.weight.detach(), full_matrices=False)
        torch.testing.assert_close(model.weight.grad, 2 * s[0] * torch.outer(u[:, 0], v[0]), rtol=1e-4, atol=1e-5)

    def test_one_iteration_a_step_gets_there(self):
        torch.manual_seed(0)
        model, regularizer = nn.Linear(20, 10), Spectral(iterations=1, warm_up=0)
        values = [regularizer(model).item() for _ in range(300)]
        exact = torch.linalg.matrix_norm(model.weight, 2).item() ** 2
        assert values[0] < 0.9 * exact
        assert values[-1] == pytest.approx(exact, rel=1e-4)
        assert all(later >= earlier * (1 - 1e-5) for earlier, later in itertools.pairwise(values))

    def test_keeps_its_vectors_in_evaluation_mode(self):
        torch.manual_seed(0)
        model, regularizer = nn.Linear(20, 10), Spectral(warm_up=0)
        regularizer(model)
        regularizer.eval()
        assert regularizer(model).item() == regularizer(model).item()

    def test_starts_in_evaluation_mode_as_in_training(self):
        torch.manual_seed(0)
        model, started, trained = nn.Linear(20, 10), Spectral().eval(), Spectral()
        started(model), trained(model)
        assert torch.equal(started(model), trained(model))

    def test_the_global_random_state_is_left_alone(self):
        model = nn.Linear(3, 2)
        before = torch.get_rng_state()
        Spectral()(model)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_matrix_that_was_zero_is_followed_again(self):
        model, regularizer = linear([[0.0, 0.0], [0.0, 0.0]]), Spectral()
        assert regularizer(model).item() == 0.0
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        for _ in range(30):
            value = regularizer(model)
        assert value.item() == pytest.approx(9.0)

    def test_its_vectors_load_by_name_into_a_fresh_one_inside_another_module(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        saved, fresh = nn.ModuleDict({"spectral": Spectral()}), nn.ModuleDict({"spectral": Spectral()})
        for _ in range(3):
            saved["spectral"](model)
        state = saved.state_dict()
        assert set(state) == {"spectral.u/0/weight", "spectral.u/1/weight"}
        result = fresh.load_state_dict(state)
        assert not result.missing_keys
        assert not result.unexpected_keys
        assert torch.equal(saved["spectral"](model), fresh["spectral"](model))

    def test_autocast_does_not_coarsen_it(self):
        torch.manual_seed(0)
        model = nn.Linear(30, 20)
        plain = Spectral()(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(Spectral()(model), plain)

    def test_a_compiled_model_has_the_same_vectors(self):
        model = nn.Sequential(nn.Linear(4, 3))
        plain, compiled = Spectral(), Spectral()
        plain(model)
        compiled(torch.compile(model, backend="eager"))
        assert set(plain.state_dict()) == set(compiled.state_dict())

    def test_two_steps_may_wait_for_one_backward(self):
        """Accumulated losses keep the graph of earlier steps, whose vectors must not be overwritten."""
        model, regularizer = nn.Linear(4, 3), Spectral()
        (regularizer(model) + regularizer(model)).backward()
        assert bool(model.weight.grad.isfinite().all())

    def test_refuses(self):
        with pytest.raises(ValueError, match="iterations must be >= 1, but got 0"):
            Spectral(iterations=0)
        with pytest.raises(ValueError, match="warm_up must be >= 0, but got -1"):
            Spectral(warm_up=-1)
        with pytest.raises(ValueError, match="two dimensions"):
            Spectral()(nn.BatchNorm1d(3))
