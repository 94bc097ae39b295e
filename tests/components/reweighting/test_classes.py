import pytest
import torch
from torch import nn

from components.binding import bind
from components.objective import Objective
from components.quantities import Quantities
from components.reweighting import ClassBalanced


class TestClassBalanced:
    def test_worked_value(self):  # beta = 1/2: E = 2 (1 - 2^-n) = 1, 1.5; 1/E = 1, 2/3; scaled to add up to 2
        weights = ClassBalanced([1, 2], beta=0.5)(torch.tensor([0, 1, 1]))
        assert weights.tolist() == pytest.approx([1.2, 0.8, 0.8])

    def test_weights_of_the_classes_add_up_to_their_number(self):
        assert ClassBalanced([1000, 100, 10, 1]).class_weights.sum().item() == pytest.approx(4)

    def test_beta_zero_weights_all_alike(self):
        assert ClassBalanced([1000, 100, 1], beta=0.0)(torch.tensor([0, 1, 2])).tolist() == [1.0, 1.0, 1.0]

    def test_beta_near_one_is_the_inverse_frequency(self):
        weights = ClassBalanced([100, 10, 1], beta=1 - 1e-9).class_weights
        torch.testing.assert_close(weights / weights[2], torch.tensor([0.01, 0.1, 1.0]), rtol=1e-5, atol=0)

    def test_rarer_classes_count_more(self):
        weights = ClassBalanced([5000, 500, 50], beta=0.999).class_weights
        assert weights[0] < weights[1] < weights[2]

    def test_a_million_samples_are_no_trouble(self):
        assert bool(ClassBalanced([10**9, 1], beta=0.9999).class_weights.isfinite().all())

    def test_an_absent_class_gets_nothing(self):
        assert ClassBalanced([10, 0, 10]).class_weights.tolist() == pytest.approx([1.0, 0.0, 1.0])

    def test_ignored_samples_weigh_nothing(self):
        assert ClassBalanced([1, 1])(torch.tensor([-100, 1])).tolist() == [0.0, 1.0]
        assert ClassBalanced([1, 1], ignore_index=255)(torch.tensor([255, 1])).tolist() == [0.0, 1.0]

    def test_in_the_objective_it_is_the_mean_of_weight_times_loss(self):
        torch.manual_seed(0)
        logits, target = torch.randn(5, 3), torch.tensor([0, 0, 1, 2, 0])
        loss = bind(nn.CrossEntropyLoss(), ["logits", "target"], name="loss", task="t", inputs={"input": "logits"})
        reweighting = bind(ClassBalanced([30, 10, 10], beta=0.9), ["target"], name="reweighting", task="t")
        total, parts = Objective(loss, reweighting=reweighting)(Quantities(logits=logits, target=target), 0)
        weights = reweighting.module.class_weights[target]
        torch.testing.assert_close(total, (weights * nn.functional.cross_entropy(logits, target, reduction="none")).mean())
        assert parts["loss"] is total

    def test_refuses(self):
        with pytest.raises(ValueError, match=r"beta must be in \[0, 1\), but got 1"):
            ClassBalanced([1, 2], beta=1)
        for wrong in ([], [0, 0], [-1, 2]):
            with pytest.raises(ValueError, match="class_counts must be a list of counts"):
                ClassBalanced(wrong)
        with pytest.raises(ValueError, match=r"target must be class indices \(N,\).*but got \(2, 4\)"):
            ClassBalanced([1, 2])(torch.zeros(2, 4, dtype=torch.long))
