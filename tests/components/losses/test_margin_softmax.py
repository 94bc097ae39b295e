import math

import pytest
import torch
from pytorch_metric_learning import losses as pml
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from components.data import Digits
from components.losses import MarginSoftmaxLoss, UNPGLoss
from components.losses.margin_softmax import box_and_whisker
from components.metrics import FewShotAccuracy

DOUBLE = torch.float64
DEGREES = 180 / math.pi


@pytest.fixture
def embeddings() -> Tensor:
    return (3 * torch.randn(24, 7, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))).requires_grad_()


@pytest.fixture
def target() -> Tensor:
    return torch.randint(5, (24,), generator=torch.Generator().manual_seed(1))


def cosines(*rows: list[float]) -> tuple[Tensor, nn.Parameter]:
    """Embeddings and class vectors (the unit vectors) with these cosines; the rest of the length goes into a last dimension."""
    given = torch.tensor(rows, dtype=DOUBLE)
    embeddings = torch.cat([given, (1 - given.square().sum(1, keepdim=True)).clamp(min=0).sqrt()], 1)
    return embeddings, nn.Parameter(torch.eye(given.shape[1], given.shape[1] + 1, dtype=DOUBLE))


def with_vectors(loss: MarginSoftmaxLoss, vectors: Tensor) -> MarginSoftmaxLoss:
    loss.class_vectors = nn.Parameter(vectors.detach().clone().double())
    return loss


NAMES = {
    "cosface": ({"angle_margin": 0.0, "cosine_margin": 0.35}, lambda: pml.CosFaceLoss(5, 7, margin=0.35, scale=64)),
    "cosface, 0.2, scale 10": ({"angle_margin": 0.0, "cosine_margin": 0.2, "scale": 10.0}, lambda: pml.CosFaceLoss(5, 7, margin=0.2, scale=10)),
    "arcface": ({}, lambda: pml.ArcFaceLoss(5, 7, margin=0.5 * DEGREES, scale=64)),
    "arcface, 1.2, scale 10": ({"angle_margin": 1.2, "scale": 10.0}, lambda: pml.ArcFaceLoss(5, 7, margin=1.2 * DEGREES, scale=10)),
    "normface": ({"angle_margin": 0.0, "scale": 20.0}, lambda: pml.CosFaceLoss(5, 7, margin=0, scale=20)),
    "sphereface": (
        {"angle_margin": 0.0, "angle_factor": 4.0, "scale": 1.0, "past_pi": "monotone", "scale_by_length": True},
        lambda: pml.SphereFaceLoss(5, 7, margin=4, scale=1),
    ),
}


class TestMarginSoftmax:
    @pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # theirs
    @pytest.mark.parametrize("name", NAMES)
    def test_agrees_with_pytorch_metric_learning(self, embeddings, target, name) -> None:
        settings, make = NAMES[name]
        theirs = make()
        ours = with_vectors(MarginSoftmaxLoss(5, 7, **settings), theirs.W.T)
        theirs.W.data = theirs.W.data.double()
        a, b = ours(embeddings, target), theirs(embeddings, target)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(*(torch.autograd.grad(v, embeddings, retain_graph=True)[0] for v in (a, b)), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(torch.autograd.grad(a, ours.class_vectors)[0], torch.autograd.grad(b, theirs.W)[0].T, rtol=1e-6, atol=1e-6)

    def test_normface_agrees_with_normalized_softmax(self, embeddings, target) -> None:
        theirs = pml.NormalizedSoftmaxLoss(5, 7, temperature=0.05)
        ours = with_vectors(MarginSoftmaxLoss(5, 7, scale=20.0, angle_margin=0.0), theirs.W.T)
        theirs.W.data = theirs.W.data.double()
        torch.testing.assert_close(ours(embeddings, target), theirs(embeddings, target), rtol=1e-6, atol=1e-6)

    def test_normface_worked_value(self) -> None:
        embeddings, vectors = cosines([1.0, 0.0])
        loss = with_vectors(MarginSoftmaxLoss(2, 3, scale=10.0, angle_margin=0.0), vectors)
        assert loss(embeddings, torch.tensor([0])).item() == pytest.approx(4.53989e-5, abs=1e-9)

    def test_smallest_loss_of_normface_is_that_of_the_simplex(self) -> None:
        assert MarginSoftmaxLoss.smallest_loss(1.0, 10) == pytest.approx(1.376935, abs=1e-6)
        simplex = torch.eye(10, dtype=DOUBLE) - 0.1
        loss = with_vectors(MarginSoftmaxLoss(10, 10, scale=1.0, angle_margin=0.0), simplex)
        assert loss(simplex, torch.arange(10)).item() == pytest.approx(1.376935, abs=1e-6)
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):  # anything else costs more
            vectors = simplex + 0.1 * torch.randn(10, 10, dtype=DOUBLE, generator=generator)
            assert with_vectors(loss, vectors)(vectors, torch.arange(10)) > 1.376935

    def test_lengths_do_not_matter_and_the_gradient_is_orthogonal(self, embeddings, target) -> None:
        loss = MarginSoftmaxLoss(5, 7, scale=20.0, angle_margin=0.0).double()
        value = loss(embeddings, target)
        gradient = torch.autograd.grad(value, embeddings)[0]
        assert (gradient * embeddings).sum(1).abs().max() < 1e-12
        by_length = torch.linspace(0.1, 50, 24, dtype=DOUBLE)[:, None]
        longer = with_vectors(MarginSoftmaxLoss(5, 7, scale=20.0, angle_margin=0.0), loss.class_vectors * torch.tensor([[0.1], [2], [30], [4], [5]]))
        torch.testing.assert_close(longer(embeddings * by_length, target), value)
        assert torch.equal(longer.predict(embeddings * by_length), loss.predict(embeddings))

    def test_learnt_scale_starts_at_scale(self, embeddings, target) -> None:
        fixed = MarginSoftmaxLoss(5, 7, scale=16.0).double()
        learnt = with_vectors(MarginSoftmaxLoss(5, 7, scale=16.0, learn_scale=True), fixed.class_vectors)
        value = learnt(embeddings, target)
        torch.testing.assert_close(value, fixed(embeddings, target))
        assert torch.autograd.grad(value, learnt.log_scale)[0] != 0

    @pytest.mark.parametrize("past_pi", ["penalty", "monotone"])
    def test_the_true_class_score_falls_with_the_angle(self, past_pi) -> None:
        angle = torch.linspace(0.01, math.pi - 0.01, 2000, dtype=DOUBLE)
        loss = MarginSoftmaxLoss(5, 7, angle_factor=3.0 if past_pi == "monotone" else 1.0, angle_margin=0.4, past_pi=past_pi)
        changed = loss.with_margin(angle.cos(), torch.full_like(angle, 10.0))
        assert (changed.diff() < 0).all()

    def test_magface_margin_and_penalty(self) -> None:
        """At length 60 half of Δ is added; g = 1/60 + 60/110². Shorter than 10 counts as 10, longer than 110 as 110."""
        settings = {"angle_margin": 0.45, "past_pi": "none", "length_margin": 0.35, "length_penalty": 20.0}
        embeddings, vectors = cosines([0.8, 0.1])
        for length, held in ((60.0, 60.0), (3.0, 10.0), (500.0, 110.0)):
            margin = 0.45 + 0.35 * (held - 10) / 100
            scores = 64 * torch.tensor([math.cos(math.acos(0.8) + margin), 0.1], dtype=DOUBLE)
            expected = -scores.log_softmax(0)[0] + 20 * (1 / held + held / 110**2)
            got = with_vectors(MarginSoftmaxLoss(2, 3, **settings), vectors)(length * embeddings, torch.tensor([0]))
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)

    def test_aligned_and_opposite_embeddings_have_finite_gradients(self) -> None:
        loss = MarginSoftmaxLoss(2, 3)
        loss.class_vectors = nn.Parameter(torch.eye(2, 3))
        embeddings = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [0.0, 0, 0]], requires_grad=True)
        gradients = torch.autograd.grad(loss(embeddings, torch.tensor([0, 0, 1])), [embeddings, loss.class_vectors])
        assert all(torch.isfinite(g).all() for g in gradients)

    def test_novel_digits_are_told_apart_better_than_by_an_unnormalised_softmax(self) -> None:
        """Trained on the digits 0 to 4; 5-way 5-shot accuracy on 5 to 9 by class means. (Four seeds: 0.72 to 0.77 against 0.43 to 0.51.)"""
        data = Digits(holdout_classes=[5, 6, 7, 8, 9])
        data.setup()
        inputs, classes = data.splits["train"]["inputs"].flatten(1), data.splits["train"]["target"]
        accuracy = []
        for normalised in (False, True):
            torch.manual_seed(0)
            body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
            head = MarginSoftmaxLoss(5, 32, scale=20.0, angle_margin=0.0) if normalised else nn.Linear(32, 5)
            optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], 1e-3)
            for _ in range(300):
                drawn = torch.randint(len(inputs), (64,))
                embedded = body(inputs[drawn])
                loss = head(embedded, classes[drawn]) if normalised else cross_entropy(head(embedded), classes[drawn])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            metric = FewShotAccuracy(episodes=100)
            with torch.no_grad():
                metric.update(body(data.splits["test"]["inputs"].flatten(1)), data.splits["test"]["target"], torch.arange(len(data.splits["test"]["target"])))
            accuracy.append(metric.compute().item())
        assert accuracy[1] > accuracy[0] + 0.1

    def test_refuses(self, embeddings, target) -> None:
        for wrong, message in (
            ({"scale": 0.0}, "scale must be > 0"),
            ({"angle_factor": 0.5}, "angle_factor must be >= 1"),
            ({"angle_margin": -0.1}, "angle_margin must be >= 0"),
            ({"past_pi": "linear"}, "past_pi must be one of"),
            ({"shortest": 110.0}, "shortest must be"),
            ({"weight": [1.0, 2.0]}, "weight must have one value for each of the 5 classes"),
        ):
            with pytest.raises(ValueError, match=message):
                MarginSoftmaxLoss(5, 7, **wrong)
        with pytest.raises(ValueError, match=r"target must hold classes in \[0, 3\)"):
            MarginSoftmaxLoss(3, 7)(embeddings, target)
        with pytest.raises(ValueError, match="embeddings must have size 6"):
            MarginSoftmaxLoss(5, 6)(embeddings, target)


class TestUNPG:
    def test_worked_value(self) -> None:
        """C = 2, s = 1, no margin, cosines (0.8, 0.1) and one negative pair at 0.2."""
        embeddings, vectors = cosines([0.8, 0.1])
        loss = with_vectors(UNPGLoss(2, 3, scale=1.0, angle_margin=0.0, whisker=math.inf), vectors)
        assert loss(embeddings, torch.tensor([0])).item() == pytest.approx(0.403186, abs=1e-6)
        second, similarity = _unit_with_cosine(embeddings[0], 0.2)
        assert similarity == pytest.approx(0.2, abs=1e-12)
        loss.reduction = "none"
        elements = loss(torch.stack([embeddings[0], second]), torch.tensor([0, 1]))
        assert elements[0].item() == pytest.approx(0.715592, abs=1e-6)

    def test_filter(self) -> None:
        values = torch.tensor([0.3, 5.0, 0.0, 0.2, 9.0, 0.1])
        there = torch.tensor([True, True, True, True, False, True])
        assert box_and_whisker(values, there, 1.5).tolist() == [True, False, True, True, False, True]
        assert torch.equal(box_and_whisker(values, there, math.inf), there)

    @pytest.mark.parametrize("margins", [{}, {"angle_margin": 0.0, "cosine_margin": 0.35}, {"angle_margin": 0.0}])
    def test_one_class_in_the_batch_is_the_margin_softmax(self, embeddings, margins) -> None:
        ours = UNPGLoss(5, 7, **margins).double()
        plain = with_vectors(MarginSoftmaxLoss(5, 7, past_pi="none", **margins), ours.class_vectors)
        target = torch.full((24,), 3)
        torch.testing.assert_close(ours(embeddings, target), plain(embeddings, target))
        if margins == {"angle_margin": 0.0}:
            scores = 64 * normalize(embeddings) @ normalize(ours.class_vectors).T
            torch.testing.assert_close(ours(embeddings, target), cross_entropy(scores, target))

    @pytest.mark.parametrize(
        "margins", [{}, {"angle_margin": 0.0, "cosine_margin": 0.35}, {"angle_margin": 0.45, "length_margin": 0.35, "length_penalty": 20.0}]
    )
    def test_agrees_with_concatenated_scores(self, embeddings, target, margins) -> None:
        """On every head: what the definition says, with a list of pairs and torch's cross-entropy."""
        loss = UNPGLoss(5, 7, scale=16.0, **margins).double()
        z, w = normalize(embeddings), normalize(loss.class_vectors)
        cosine = z @ w.T
        length = embeddings.norm(dim=1).clamp(10.0, 110.0)
        margin = loss.angle_margin + loss.length_margin * (length - 10) / 100
        own = (cosine.gather(1, target[:, None]).squeeze(1).acos() + margin).cos() - loss.cosine_margin
        pairs = sorted((z[a] @ z[b]).item() for a in range(24) for b in range(a + 1, 24) if target[a] != target[b])
        low, high = pairs[math.floor(0.25 * len(pairs))], pairs[math.floor(0.75 * len(pairs))]
        kept = [s for s in pairs if low - 1.5 * (high - low) <= s <= high + 1.5 * (high - low)]
        scores = 16 * torch.cat([cosine.scatter(1, target[:, None], own[:, None]), torch.tensor(kept, dtype=DOUBLE).expand(24, -1)], 1)
        expected = cross_entropy(scores, target, reduction="none") + loss.length_penalty * (1 / length + length / 110**2)
        torch.testing.assert_close(loss(embeddings, target), expected.mean())

    def test_kept_pairs_push_and_filtered_ones_do_not(self, monkeypatch) -> None:
        """dL/du >= 0 for every kept similarity, 0 for filtered ones; another negative never lowers the loss."""
        similarity = torch.linspace(-0.3, 0.4, 45, dtype=DOUBLE)
        similarity[-1] = 0.999
        z = torch.zeros(10, 10, dtype=DOUBLE)
        z[torch.triu_indices(10, 10, 1).unbind()] = similarity
        z.requires_grad_()
        inside = box_and_whisker(z.flatten(), torch.ones(10, 10, dtype=torch.bool).triu(1).flatten(), 1.5)
        assert inside.sum() == 44
        monkeypatch.setattr("components.losses.margin_softmax.dot_products", lambda a, b: z)
        scored = UNPGLoss(10, 4).with_more_negatives(torch.zeros(10, dtype=DOUBLE), 4.0, torch.zeros(10, 4, dtype=DOUBLE), torch.arange(10))
        gradient = torch.autograd.grad(scored.mean(), z)[0].flatten()
        assert (gradient[inside] > 0).all() and (gradient[~inside] == 0).all()

    def test_negatives_never_lower_the_loss(self, embeddings, target) -> None:
        loss = UNPGLoss(5, 7, scale=8.0, reduction="none").double()
        plain = with_vectors(MarginSoftmaxLoss(5, 7, scale=8.0, past_pi="none", reduction="none"), loss.class_vectors)
        assert (loss(embeddings, target) > plain(embeddings, target)).all()

    def test_lengths_do_not_matter(self, embeddings, target) -> None:
        loss = UNPGLoss(5, 7).double()
        torch.testing.assert_close(loss(embeddings * torch.linspace(0.1, 50, 24, dtype=DOUBLE)[:, None], target), loss(embeddings, target))

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match="whisker must be >= 0"):
            UNPGLoss(5, 7, whisker=-1.0)


def _unit_with_cosine(vector: Tensor, cosine: float) -> tuple[Tensor, float]:
    """A vector of length 1 with that cosine to ``vector``."""
    other = torch.tensor([0.0, 1.0, 0.0], dtype=vector.dtype)
    other = normalize(other - (other @ vector) * vector, dim=0)
    made = cosine * vector + math.sqrt(1 - cosine**2) * other
    return made, float(made @ vector)
