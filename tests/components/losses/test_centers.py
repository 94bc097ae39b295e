import pytest
import torch

from components.losses import CenterLoss


class TestCenter:
    def test_worked_value(self) -> None:
        loss = CenterLoss(2, 2)
        loss.centers.data = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        loss.reduction = "none"
        assert loss(torch.tensor([[3.0, 4.0], [1.0, 3.0]]), torch.tensor([0, 1])).tolist() == [12.5, 2.0]

    def test_a_centre_settles_in_the_middle_of_its_class(self) -> None:
        embeddings = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
        target = torch.arange(12) % 2
        loss = CenterLoss(3, 3)
        start = loss.centers.detach().clone()
        optimizer = torch.optim.SGD(loss.parameters(), 0.5)
        for _ in range(100):
            optimizer.zero_grad()
            loss(embeddings, target).backward()
            optimizer.step()
        torch.testing.assert_close(loss.centers[:2].detach(), torch.stack([embeddings[target == c].mean(0) for c in (0, 1)]))
        assert torch.equal(loss.centers[2], start[2])

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match=r"target must hold classes in \[0, 2\)"):
            CenterLoss(2, 3)(torch.zeros(2, 3), torch.tensor([0, 2]))
        with pytest.raises(ValueError, match="embeddings must have size 4"):
            CenterLoss(2, 4)(torch.zeros(2, 3), torch.tensor([0, 1]))
