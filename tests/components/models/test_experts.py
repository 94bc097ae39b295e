"""Mixture of experts: who sees whom."""

import pytest
import torch

from components.models import MixtureOfExperts


def model_of(router, **options):
    torch.manual_seed(0)
    return MixtureOfExperts((5,), 3, experts=4, hidden=8, router=router, **options)


def test_each_sample_chooses():
    routes = model_of("top_k", chosen=2).routes(torch.randn(10, 4))
    assert (routes.sum(1) == 2).all()


def test_transport_loads_experts_equally_where_all_want_the_same():
    scores = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([5.0, 0.0, 0.0, 0.0])
    by_choice, by_transport = (model_of(router, **more).routes(scores) for router, more in (("top_k", {}), ("sparse_transport", {"iterations": 50})))
    assert by_choice.sum(0).tolist() == [12, 0, 0, 0]
    assert by_transport.sum(0).max() <= 3 and by_transport.sum() >= 10
    assert set(by_transport.unique().tolist()) <= {0.0, 1.0}


def test_capacity_grows_with_what_is_chosen():
    routes = model_of("sparse_transport", chosen=2).routes(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)))
    assert routes.sum(0).max() <= 6


def test_router_learns_through_its_gates():
    model = model_of("sparse_transport")
    model(torch.randn(12, 5)).output.square().mean().backward()
    assert model.router.weight.grad is not None and model.router.weight.grad.abs().sum() > 0


def test_one_sample_alone():
    assert model_of("sparse_transport")(torch.randn(1, 5)).output.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 1}, "experts must"),
        ({"router": "sinkhorn"}, "router must be one of"),
        ({"chosen": 9}, "chosen must be in"),
        ({"gamma": 0}, "gamma must"),
        ({"iterations": 0}, "iterations must"),
        ({"hidden": 0}, "hidden must"),
        ({"expert_hidden": 0}, "expert_hidden must"),
    ],
)
def test_refuses_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        MixtureOfExperts((5,), 3, **options)
