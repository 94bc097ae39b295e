from __future__ import annotations

from typing import Any

import pytest
import torch

from components.data import GaussianMixture, RareGradients, TeacherStudent, TwoMoons


def test_moons_lie_on_half_circles() -> None:
    samples = TwoMoons(size=200, noise=0.0).read()
    upper, lower = samples.inputs[samples.target == 0], samples.inputs[samples.target == 1]
    assert torch.allclose(upper.norm(dim=1), torch.ones(100), atol=1e-6) and bool((upper[:, 1] >= 0).all())
    assert torch.allclose((lower - torch.tensor([1.0, 0.5])).norm(dim=1), torch.ones(100), atol=1e-6) and bool((lower[:, 1] <= 0.5).all())


def test_the_mixture_has_its_means_and_unit_variance() -> None:
    data = GaussianMixture(size=40_000, classes=4, dimensions=6, separation=2.5)
    samples = data.read()
    for c in range(4):
        points = samples.inputs[samples.target == c]
        assert float(points.mean(0).norm()) == pytest.approx(2.5, abs=0.06)
        assert torch.allclose(torch.cov(points.T), torch.eye(6), atol=0.06)


def test_best_accuracy_grows_with_the_separation() -> None:
    scores = [GaussianMixture(separation=s).best_accuracy() for s in (0.0, 1.0, 3.0, 20.0)]
    assert scores == sorted(scores) and scores[0] == pytest.approx(0.2, abs=0.03) and scores[-1] == 1.0


def test_a_student_with_the_teachers_noise_left_over() -> None:
    noisy, clean = TeacherStudent(noise=0.3).read(), TeacherStudent(noise=0.0).read()
    assert torch.equal(noisy.inputs, clean.inputs)
    assert float((noisy.target - clean.target).std()) == pytest.approx(0.3, abs=0.02)
    assert float(clean.target.std()) == pytest.approx(1, abs=0.1)


def test_a_teacher_of_classes_says_the_largest_output() -> None:
    values = TeacherStudent(outputs=4).read().target
    classes = TeacherStudent(outputs=4, kind="class").read()
    assert classes.target.tolist() == values.argmax(1).tolist() and classes.target_kind == "multiclass"


def test_rare_gradients_pull_harder_than_all_others_together() -> None:
    data = RareGradients(size=300, spread=0.0).read()
    loss = [float((weight * data.inputs.double() - data.target).abs().mean()) for weight in (-1.0, -0.5, 0.0, 1.0)]
    assert loss == pytest.approx([4 / 3, 1.5, 5 / 3, 2.0])  # linear between the best and the worst point
    assert int((data.inputs == 3).sum()) == 100 and int((data.inputs == -1).sum()) == 200
    differing = RareGradients(size=300, spread=0.1).read()
    assert float((differing.inputs.double() - differing.target).abs().mean()) == pytest.approx(2.0, rel=0.02)
    assert len(set(differing.target.flatten().tolist())) > 250 and float((differing.inputs.abs() - data.inputs.abs()).abs().max()) <= 0.3001
    authors = RareGradients(size=1000, large=1010, small=10, share=0.01, spread=0.0).read()
    assert float(authors.inputs.sum()) == 10 * 1010 - 990 * 10


def test_the_draw_depends_on_split_seed_alone() -> None:
    one, same, other = TwoMoons(seed=0), TwoMoons(seed=1), TwoMoons(split_seed=1)
    assert torch.equal(one.read().inputs, same.read().inputs) and not torch.equal(one.read().inputs, other.read().inputs)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (TwoMoons, {"size": 5}, "size must be >= 10"),
        (TwoMoons, {"noise": -1}, "noise must be >= 0"),
        (GaussianMixture, {"classes": 1}, "classes must be in 2 … 500"),
        (GaussianMixture, {"separation": -1.0}, "separation must be >= 0"),
        (RareGradients, {"share": 1.0}, r"share must be in \(0, 1\), but got 1.0"),
        (RareGradients, {"spread": 1.0}, r"spread must be in \[0, 1\), but got 1.0"),
        (RareGradients, {"small": 0.0}, "small must be > 0"),
        (TeacherStudent, {"kind": "classes"}, "did you mean 'class'"),
        (TeacherStudent, {"kind": "class"}, "for kind=class >= 2, but got 1"),
    ],
)
def test_errors(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
