import pytest
import torch

from components.metrics import SoftmaxCollapse


class TestSoftmaxCollapse:
    def share(self, leads: list[float], dtype: torch.dtype = torch.float32, precision: str | None = None) -> float:
        metric = SoftmaxCollapse(precision)
        metric.update(torch.tensor([[0.0, lead, -100.0] for lead in leads], dtype=dtype))
        return metric.compute().item()

    def test_begins_at_the_precisions_last_digit(self) -> None:  # half the spacing above 1: 2^-24, so a lead of 24 ln 2 = 16.64
        assert self.share([16.6, 16.7, 30.0, 1.0]) == 0.5
        assert self.share([16.7, 36.0, 37.0, 1e4], torch.float64) == 0.5
        assert self.share([5.0, 6.3], torch.bfloat16) == 0.5

    def test_precision_can_be_chosen(self) -> None:
        assert self.share([16.6, 16.7, 30.0, 8.0], precision="float16") == 1.0
        assert self.share([16.6, 16.7, 30.0, 1.0], precision="float64") == 0.0

    def test_pixels(self) -> None:
        metric = SoftmaxCollapse()
        scores = torch.zeros(2, 3, 4)
        scores[0, 1] = 50
        metric.update(scores)
        assert metric.compute() == 0.5

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="precision must be one of float16"):
            SoftmaxCollapse("float8")
        with pytest.raises(ValueError, match="preds must have shape"):
            SoftmaxCollapse().update(torch.zeros(3))
