import pytest
import torch

from components.transforms import GaussianNoise


class TestGaussianNoise:
    def test_has_the_given_size_and_no_bias(self):
        torch.manual_seed(0)
        inputs = torch.full((200, 100), 3.0)
        noise = GaussianNoise(std=0.5)({"inputs": inputs})["inputs"] - inputs
        assert noise.mean().item() == pytest.approx(0, abs=0.02)
        assert noise.std().item() == pytest.approx(0.5, rel=0.02)

    def test_none_is_the_identity(self):
        inputs = torch.randn(4, 3)
        assert torch.equal(GaussianNoise(std=0.0)({"inputs": inputs})["inputs"], inputs)

    def test_is_independent_between_elements(self):
        torch.manual_seed(0)
        noise = GaussianNoise(std=1.0)({"inputs": torch.zeros(2000, 3)})["inputs"]
        torch.testing.assert_close(torch.corrcoef(noise.T), torch.eye(3), atol=0.1, rtol=0)

    def test_refuses(self):
        with pytest.raises(ValueError, match=r"std must be >= 0, but got -0.1"):
            GaussianNoise(std=-0.1)
