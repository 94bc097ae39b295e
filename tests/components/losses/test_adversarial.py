import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from components.losses import AdversarialCalibrationLoss

D = torch.float64


def embeddings(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=D)

    return {
        "adversarial_embeddings": normal(6, 4).requires_grad_(),
        "clean_embeddings": normal(6, 4).requires_grad_(),
        "teacher_features": normal(6, 4),
        "class_centers": normalize(normal(3, 4)),
        "target": torch.arange(6) % 3,
    }


class TestAdversarialCalibration:
    def test_the_three_modes(self) -> None:
        q = embeddings()
        attacked, clean = normalize(q["adversarial_embeddings"]), normalize(q["teacher_features"])
        stays = (q["clean_embeddings"] - q["teacher_features"]).square().sum(1).mean()
        expected = {
            "center_ce": cross_entropy(attacked @ q["class_centers"].T / 0.1, q["target"]),
            "l2": (attacked - clean).square().sum(1).mean(),
            "info_nce": cross_entropy(attacked @ clean.T / 0.1, torch.arange(6)),
        }
        for mode, value in expected.items():
            ours = AdversarialCalibrationLoss(mode, temperature=0.1, consistency=0.3)(**q)  # type: ignore[arg-type]
            torch.testing.assert_close(ours, value + 0.3 * stays)

    def test_an_identity_head_without_an_attack_leaves_nothing_but_the_zero_shot_loss(self) -> None:
        q = embeddings()
        q["adversarial_embeddings"] = q["clean_embeddings"] = q["teacher_features"]
        assert AdversarialCalibrationLoss("l2")(**q).item() == pytest.approx(0, abs=1e-12)
        zero_shot = cross_entropy(normalize(q["teacher_features"]) @ q["class_centers"].T / 0.07, q["target"])
        torch.testing.assert_close(AdversarialCalibrationLoss("center_ce")(**q), zero_shot)

    @pytest.mark.parametrize("size", [2, 4])
    def test_worked_value_of_info_nce(self, size: int) -> None:
        eye = torch.eye(size, dtype=D)
        same: dict[str, Any] = dict.fromkeys(("adversarial_embeddings", "clean_embeddings", "teacher_features"), 3 * eye)
        value = AdversarialCalibrationLoss("info_nce", temperature=1.0)(**same, class_centers=eye, target=torch.arange(size))
        assert value.item() == pytest.approx(math.log(1 + (size - 1) / math.e))
        if size == 2:
            assert value.item() == pytest.approx(0.313262, abs=1e-6)

    @pytest.mark.parametrize("mode", ["center_ce", "l2", "info_nce"])
    def test_no_gradient_reaches_the_frozen_side(self, mode: str) -> None:
        q = embeddings()
        q["teacher_features"].requires_grad_()
        AdversarialCalibrationLoss(mode)(**q).backward()  # type: ignore[arg-type]
        assert q["teacher_features"].grad is None
        assert q["adversarial_embeddings"].grad is not None and q["clean_embeddings"].grad is not None

    def test_bad_input(self) -> None:
        for wrong in ({"mode": "l1"}, {"temperature": 0.0}, {"consistency": -0.1}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                AdversarialCalibrationLoss(**wrong)  # type: ignore[arg-type]
        q, loss = embeddings(), AdversarialCalibrationLoss()
        for name, value in {"class_centers": torch.ones(3, 5, dtype=D), "target": q["target"] + 1}.items():
            with pytest.raises(ValueError, match=rf"\b{name}\b"):
                loss(**q | {name: value})
