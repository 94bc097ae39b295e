import os
import socket

import pytest
import torch
from torch import nn

from components.models.base import ModelOutput
from components.regularizers import JacobianNorm


class TestJacobianNorm:
    def test_linear_model_with_all_directions_is_the_frobenius_norm(self):
        torch.manual_seed(0)
        model, inputs = nn.Linear(7, 4).double(), torch.randn(5, 7, dtype=torch.float64)
        for projections in (4, 9):
            value = JacobianNorm(projections)(model, inputs)
            torch.testing.assert_close(value, model.weight.square().sum())
        value.backward()
        torch.testing.assert_close(model.weight.grad, 2 * model.weight.detach())
        assert model.bias.grad is None or bool((model.bias.grad == 0).all())

    @pytest.mark.parametrize("projections", [1, 2])
    def test_few_directions_are_right_on_average(self, projections):
        torch.manual_seed(0)
        model, inputs = nn.Linear(6, 4), torch.randn(8, 6)
        estimate = torch.stack([JacobianNorm(projections)(model, inputs).detach() for _ in range(400)]).mean()
        torch.testing.assert_close(estimate, model.weight.detach().square().sum(), rtol=0.05, atol=0)

    def test_more_directions_scatter_less(self):
        torch.manual_seed(0)
        model, inputs = nn.Linear(6, 4), torch.randn(2, 6)
        spread = [torch.stack([JacobianNorm(n)(model, inputs).detach() for _ in range(100)]).std().item() for n in (1, 3, 4)]
        assert spread[0] > spread[1] > spread[2]
        assert spread[2] < 1e-4

    def test_non_linear_model_agrees_with_torchs_jacobian(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
        inputs = torch.randn(3, 1, 4, 4, dtype=torch.float64)
        jacobian = torch.func.vmap(torch.func.jacrev(lambda x: model(x.unsqueeze(0)).squeeze(0)))(inputs)
        expected = jacobian.square().sum() / len(inputs)
        value = JacobianNorm(3)(model, inputs)
        torch.testing.assert_close(value, expected)
        parameters = list(model.parameters())
        ours, theirs = (torch.autograd.grad(v, parameters, allow_unused=True, materialize_grads=True) for v in (value, expected))
        torch.testing.assert_close(ours, theirs)

    def test_minimising_it_flattens_the_model(self):
        torch.manual_seed(0)
        model, inputs = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(16, 4)
        exact = JacobianNorm(2)
        before = exact(model, inputs).item()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(100):
            optimizer.zero_grad()
            JacobianNorm()(model, inputs).backward()
            optimizer.step()
        assert exact(model, inputs).item() < 0.1 * before

    def test_running_statistics_stay(self):
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        JacobianNorm()(model, torch.randn(8, 4) + 5).backward()
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, before[name]), name
        model(torch.randn(8, 4) + 5)
        assert int(model[1].num_batches_tracked) == 1

    def test_the_inputs_gradient_is_not_touched(self):
        model, inputs = nn.Linear(4, 2), torch.randn(3, 4, requires_grad=True)
        JacobianNorm()(model, inputs).backward()
        assert inputs.grad is None

    def test_attention_can_be_differentiated_twice(self):
        class Attend(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.project = nn.Linear(8, 24)

            def forward(self, inputs: torch.Tensor) -> ModelOutput:
                q, k, v = self.project(inputs).unsqueeze(1).chunk(3, dim=-1)
                return ModelOutput(nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1).mean(1))

        model = Attend()
        JacobianNorm()(model, torch.randn(2, 5, 8)).backward()
        assert bool(model.project.weight.grad.isfinite().all())
        assert bool((model.project.weight.grad != 0).any())

    def test_a_compiled_model_is_run_uncompiled(self):
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        inputs = torch.randn(5, 4)
        torch.testing.assert_close(JacobianNorm(2)(torch.compile(model, backend="aot_eager"), inputs), JacobianNorm(2)(model, inputs))

    def test_half_precision_autocast(self):
        torch.manual_seed(0)
        model, inputs = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)), torch.randn(8, 6)
        exact = JacobianNorm(3)(model, inputs).item()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = JacobianNorm(3)(model, inputs)
        value.backward()
        assert value.item() == pytest.approx(exact, rel=0.05)

    def test_without_gradients_it_still_has_a_value(self):
        model, inputs = nn.Linear(4, 2), torch.randn(3, 4)
        with torch.no_grad():
            value = JacobianNorm(2)(model, inputs)
        assert not value.requires_grad
        assert value.item() == pytest.approx(model.weight.square().sum().item(), rel=1e-4)

    def test_refuses(self):
        with pytest.raises(ValueError, match="projections must be >= 1, but got 0"):
            JacobianNorm(projections=0)
        with pytest.raises(ValueError, match=r"inputs must be floating point .* but got torch.int64"):
            JacobianNorm()(nn.Linear(2, 2), torch.zeros(3, 2, dtype=torch.long))


class Wrapped(nn.Module):
    """As a LightningModule under DDP: the objective is computed inside the wrapped forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        self.regularizer = JacobianNorm(projections=3)  # exact, so that the ranks' random directions do not matter

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.model(inputs).square().mean() + self.regularizer(self.model, inputs)


def batch() -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def train_rank(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        torch.manual_seed(100 + rank)
        wrapped = nn.parallel.DistributedDataParallel(Wrapped())
        wrapped(batch()[rank::2]).backward()
        alone = Wrapped()
        alone(batch()).backward()
        for (name, ours), theirs in zip(wrapped.module.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name, equal_nan=False)
    finally:
        torch.distributed.destroy_process_group()
    # Every check has passed (a failed one has raised). At the interpreter's own exit torch 2.13 now and then aborts after a gloo
    # group ("terminate called without an active exception", about 1 process pair in 20 here): that is not what is tried.
    os._exit(0)


def test_two_ddp_ranks_get_the_gradient_of_one_process():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train_rank, args=(port,), nprocs=2)
