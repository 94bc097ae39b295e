import pytest
import torch
from torch.distributions import Normal, kl_divergence

from components.models import ProbabilisticUNet, UNet
from components.models.probabilistic_unet import gaussian_kl


@pytest.fixture
def model() -> ProbabilisticUNet:
    torch.manual_seed(0)
    return ProbabilisticUNet(1, 3, latent_dim=4, depth=2, width=8).eval()


def test_forward_decodes_the_priors_mean(model: ProbabilisticUNet) -> None:
    inputs = torch.randn(2, 1, 9, 10)
    mean, log_std = model.prior(inputs)
    assert mean.shape == log_std.shape == (2, 4)
    torch.testing.assert_close(model(inputs).output, model.decode(model.maps(inputs), mean.unsqueeze(1))[:, 0])


def test_many_draws_are_decoded_as_one_by_one(model: ProbabilisticUNet) -> None:
    maps, latent = model.maps(torch.randn(2, 1, 8, 8)), torch.randn(2, 5, 4)
    at_once = model.decode(maps, latent)
    assert at_once.shape == (2, 5, 3, 8, 8)
    for s in range(5):
        torch.testing.assert_close(at_once[:, s : s + 1], model.decode(maps, latent[:, s : s + 1]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(at_once[:, 0], at_once[:, 1])


def test_the_posterior_sees_the_mask(model: ProbabilisticUNet) -> None:
    inputs, mask = torch.randn(2, 1, 8, 8), torch.zeros(2, 3, 8, 8)
    assert not torch.equal(model.posterior(inputs, mask)[0], model.posterior(inputs, mask + 1)[0])
    mean, log_std = model.posterior(inputs, mask)
    (mean.sum() + log_std.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.posterior_net.parameters())


def test_divergence_is_torchs() -> None:
    mean, log_std, other_mean, other_log_std = torch.randn(4, 3, 5, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, log_std.exp()), Normal(other_mean, other_log_std.exp())).sum(1)
    torch.testing.assert_close(gaussian_kl(mean, log_std, other_mean, other_log_std), expected)
    assert (gaussian_kl(mean, log_std, mean, log_std) == 0).all()


@pytest.mark.parametrize("model_class", [UNet, ProbabilisticUNet])
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_volumes(model_class: type[UNet], norm: str) -> None:
    """The size of the data says that inputs are volumes; any sides will do."""
    model = model_class(2, 3, image_size=(4, 4, 4), depth=2, width=4, norm=norm)
    result = model(torch.randn(2, 2, 5, 6, 7))
    assert result.output.shape == (2, 3, 5, 6, 7)
    assert result.features.shape == (2, 4)
    result.output.square().mean().backward()
    with pytest.raises(ValueError, match=r"takes volumes \(N, 2, D, H, W\)"):
        model(torch.randn(2, 2, 6, 7))


def test_an_image_size_of_one_number() -> None:
    with pytest.raises(ValueError, match="image_size"):
        UNet(1, 2, image_size=(5,))
