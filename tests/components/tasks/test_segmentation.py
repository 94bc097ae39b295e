import pytest
import torch
from tiny_tasks import CLASSES, build
from torch import nn

from components.tasks import SegmentationTask


def test_ignored_pixels_have_no_class():
    task, _ = build("segmentation")
    hot = task.multi_hot(torch.tensor([[[0, 2], [-100, 1]]]))
    assert hot.shape == (1, CLASSES, 2, 2)
    assert hot[0, :, 0, 0].tolist() == [1, 0, 0] and hot[0, :, 0, 1].tolist() == [0, 0, 1] and hot[0, :, 1, 0].tolist() == [0, 0, 0]


def test_predicts_masks_and_areas():
    task = SegmentationTask(nn.Identity(), num_classes=2)
    logits = torch.stack([torch.tensor([[5.0, -5.0], [-5.0, -5.0]]), torch.zeros(2, 2)]).unsqueeze(0)
    columns = task.predict({"inputs": logits})
    assert columns["prediction"].tolist() == [[[0, 1], [1, 1]]]
    assert columns["area"].tolist() == [[0.25, 0.75]]
    assert 0.98 < float(columns["confidence"]) < 1


def test_errors():
    task = SegmentationTask(nn.Identity(), num_classes=2)
    batch = {"inputs": torch.zeros(1, 2, 4, 4), "target": torch.zeros(1, 3, 4, dtype=torch.long), "index": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"puts out \(1, 2, 4, 4\) for targets \(1, 3, 4\)"):
        task.quantities(batch)
    with pytest.raises(ValueError, match=r"puts out \(1, 2\) for targets"):
        task.quantities({**batch, "inputs": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match=r"one class a pixel.* but got 'real'"):
        SegmentationTask.facts({"target_kind": "real"})
    with pytest.raises(ValueError, match="num_classes must be >= 2"):
        SegmentationTask(nn.Identity(), num_classes=1)
