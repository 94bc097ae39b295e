import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from components.losses import GE2ELoss

DOUBLE = torch.float64


def brute_force(embeddings: Tensor, target: Tensor, kind: str, *, leave_out: bool = True) -> Tensor:
    """Sample by sample and class by class, w = 10 and b = -5."""
    e = embeddings / embeddings.norm(dim=1, keepdim=True)
    classes = target.unique().tolist()
    values = []
    for i in range(len(e)):
        scores = {}
        for k in classes:
            members = [j for j in range(len(e)) if target[j] == k and (j != i or not leave_out)]
            scores[k] = 10 * cosine_similarity(e[i], e[members].mean(0), dim=0) - 5
        own = scores[int(target[i])]
        others = torch.stack([scores[k] for k in classes if k != target[i]])
        values.append(torch.cat([own[None], others]).logsumexp(0) - own if kind == "softmax" else 1 - own.sigmoid() + others.sigmoid().max())
    return torch.stack(values)


@pytest.fixture
def embeddings() -> Tensor:
    return torch.randn(20, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def target() -> Tensor:
    return torch.tensor([0, 3, 1, 2, 3, 0, 0, 1, 2, 3, 3, 2, 1, 0, 2, 1, 3, 0, 1, 2])


class TestGE2E:
    @pytest.mark.parametrize(("kind", "each", "total"), [("softmax", 4.53989e-5, 1.81596e-4), ("contrast", 0.0133857, 0.0535428)])
    def test_two_speakers_on_orthogonal_axes(self, kind, each, total) -> None:
        embeddings, target = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 1.0]], dtype=DOUBLE), torch.tensor([0, 0, 1, 1])
        assert GE2ELoss(kind)(embeddings, target).item() == pytest.approx(each, abs=1e-7)
        assert GE2ELoss(kind, reduction="sum")(embeddings, target).item() == pytest.approx(total, abs=1e-6)

    def test_equal_embeddings(self, target) -> None:
        embeddings = torch.ones(20, 6, dtype=DOUBLE)
        torch.testing.assert_close(GE2ELoss(reduction="none")(embeddings, target), torch.full((20,), math.log(4), dtype=DOUBLE))
        torch.testing.assert_close(GE2ELoss("contrast", reduction="none")(embeddings, target), torch.ones(20, dtype=DOUBLE))

    @pytest.mark.parametrize("kind", ["softmax", "contrast"])
    def test_agrees_with_brute_force(self, embeddings, target, kind) -> None:
        ours, expected = GE2ELoss(kind, reduction="none")(embeddings, target), brute_force(embeddings, target, kind)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(*(torch.autograd.grad(v.sum(), embeddings)[0] for v in (ours, expected)))

    @pytest.mark.parametrize("kind", ["softmax", "contrast"])
    def test_the_sample_is_not_in_its_own_centroid(self, embeddings, target, kind) -> None:
        ours, wrong = GE2ELoss(kind)(embeddings, target), brute_force(embeddings, target, kind, leave_out=False).mean()
        assert (ours - wrong).abs() > 1e-2

    @pytest.mark.parametrize("kind", ["softmax", "contrast"])
    def test_names_of_speakers_rotation_and_length_do_not_matter(self, embeddings, target, kind) -> None:
        loss = GE2ELoss(kind)
        expected = loss(embeddings, target)
        torch.testing.assert_close(loss(embeddings, torch.tensor([2, 7, 0, 5])[target]), expected)
        rotation = torch.linalg.qr(torch.randn(6, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(2)))[0]
        torch.testing.assert_close(loss(embeddings @ rotation, target), expected)
        torch.testing.assert_close(loss(embeddings * torch.linspace(0.1, 30, 20, dtype=DOUBLE)[:, None], target), expected)

    def test_a_speaker_with_one_utterance_is_only_a_rival(self, embeddings) -> None:
        target = torch.tensor([0] * 10 + [1] * 9 + [2])
        elements = GE2ELoss(reduction="none")(embeddings, target)
        assert elements[-1] == 0 and (elements[:-1] > 0).all()
        torch.testing.assert_close(GE2ELoss()(embeddings, target), elements.sum() / 19)

    def test_scale_and_offset_learn_slowly(self, embeddings, target) -> None:
        gradients = []
        for factor in (1.0, 0.01):
            loss = GE2ELoss(gradient_scale=factor).double()
            gradients.append(torch.stack(torch.autograd.grad(loss(embeddings, target), [loss.log_scale, loss.shift])))
        torch.testing.assert_close(gradients[1], 0.01 * gradients[0])
        assert (gradients[0] != 0).all()

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match="kind must be one of softmax, contrast"):
            GE2ELoss("max")
        with pytest.raises(ValueError, match="scale must be > 0"):
            GE2ELoss(scale=0.0)
