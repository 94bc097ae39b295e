import pytest
import torch

from components.models import AdaptiveTemperature, TemperatureScaling
from components.models.calibrators import transformed_views, view_probabilities


class TestTemperatures:
    def test_start_at_one(self) -> None:
        assert TemperatureScaling()(torch.zeros(3, 2)).tolist() == [[1.0]] * 3
        torch.manual_seed(0)
        temperatures = AdaptiveTemperature(12)(torch.rand(100, 12))
        assert temperatures.shape == (100, 1) and (temperatures - 1).abs().max() < 0.9

    def test_stay_within_their_bounds(self) -> None:
        torch.manual_seed(0)
        for scale in (-100.0, 100.0):
            temperatures = AdaptiveTemperature(12)(scale * torch.randn(50, 12))
            assert temperatures.min() >= 0.1 and temperatures.max() <= 10
        single = TemperatureScaling()
        with torch.no_grad():
            single.temperature.fill_(99.0)
        assert single(torch.zeros(1, 1)).item() == 10

    def test_wrong_options_are_named(self) -> None:
        for wrong in ({"minimum": 0.0}, {"maximum": 1.0}, {"hidden": 0}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                AdaptiveTemperature(3, **wrong)  # type: ignore[arg-type]


class TestViews:
    def test_pictures(self) -> None:
        pictures = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        turned, grey, jittered = transformed_views(pictures, rotation=90.0, jitter=0.2)
        exact = [torch.rot90(pictures, k, (2, 3)) for k in (1, 3)]
        assert any(torch.allclose(turned, other, atol=1e-4) for other in exact)
        assert torch.allclose(grey, pictures.mean(1, keepdim=True).expand_as(pictures))
        torch.testing.assert_close(jittered.mean((1, 2, 3)), 1.2 * pictures.mean((1, 2, 3)))

    def test_one_channel_and_tables(self) -> None:
        assert transformed_views(torch.rand(5, 1, 8, 8)).shape == (3, 5, 1, 8, 8)
        table = torch.randn(5, 4)
        smaller, larger, shifted = transformed_views(table, jitter=0.5)
        torch.testing.assert_close(smaller, 0.5 * table)
        torch.testing.assert_close(larger, 1.5 * table)
        torch.testing.assert_close(shifted - table, torch.tensor([0.5, -0.5, 0.5, -0.5]).expand(5, 4))

    def test_probabilities_of_the_likeliest_classes(self) -> None:
        logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 0.0, 1.0]])
        views = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
        seen = view_probabilities(logits, views, top=2)
        p = views.softmax(2)
        torch.testing.assert_close(seen[0], torch.stack([p[0, 0, 1], p[0, 0, 2], p[1, 0, 1], p[1, 0, 2], p[2, 0, 1], p[2, 0, 2]]))
        torch.testing.assert_close(seen[1, :2], torch.stack([p[0, 1, 0], p[0, 1, 2]]))
        assert view_probabilities(logits, views, top=10).shape == (2, 9)
