import pytest
import torch
from torch import Tensor, nn

from components.binding import Bound, bind
from components.objective import Objective, Term
from components.quantities import Quantities, lazy
from components.regularizers import L2, ActivationL2, Spectral

OFFERED = ["inputs", "index", "target", "logits", "features", "model", "step", "epoch", "loss_fn", "per_sample_loss"]


def bound(component: object, **inputs: str) -> Bound:
    return bind(component, OFFERED, name=type(component).__name__, task="t", inputs=inputs)


def cross_entropy(**options: object) -> Bound:
    return bound(nn.CrossEntropyLoss(**options), input="logits")


@pytest.fixture
def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


@pytest.fixture
def quantities(model: nn.Linear) -> Quantities:
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    return Quantities(inputs=inputs, target=torch.tensor([0, 1, 2, 2, 1, 0]), index=torch.arange(6), logits=model(inputs), features=inputs, model=model, step=3)


def each(quantities: Quantities, target: Tensor | None = None) -> Tensor:
    return nn.functional.cross_entropy(quantities["logits"], quantities["target"] if target is None else target, reduction="none")


class TestSum:
    def test_the_loss_alone(self, quantities):
        total, parts = Objective(cross_entropy())(quantities, 0)
        torch.testing.assert_close(total, each(quantities).mean())
        assert list(parts) == ["loss"]

    def test_auxiliary_losses_and_regularizers_are_added_with_their_weights(self, quantities):
        objective = Objective(
            cross_entropy(),
            auxiliary={"margin": Term(bound(nn.MultiMarginLoss(), input="logits"), 0.5)},
            regularizers={"l2": Term(bound(L2()), 0.1), "activation_l2": Term(bound(ActivationL2()), 2)},
        )
        total, parts = objective(quantities, 0)
        assert list(parts) == ["loss", "auxiliary.margin", "regularizer.l2", "regularizer.activation_l2"]
        torch.testing.assert_close(parts["regularizer.l2"], quantities["model"].weight.square().sum())  # unweighted
        torch.testing.assert_close(parts["auxiliary.margin"], nn.functional.multi_margin_loss(quantities["logits"], quantities["target"]))
        weighted = parts["loss"] + 0.5 * parts["auxiliary.margin"] + 0.1 * parts["regularizer.l2"] + 2 * parts["regularizer.activation_l2"]
        torch.testing.assert_close(total, weighted)

    def test_a_weight_may_be_a_schedule(self, quantities):
        objective = Objective(cross_entropy(), regularizers={"l2": Term(bound(L2()), lambda step: step / 10)})
        for step in (0, 5, 10):
            total, parts = objective(quantities, step)
            torch.testing.assert_close(total, parts["loss"] + step / 10 * parts["regularizer.l2"])
        assert objective.regularizers["l2"].weight_at(3) == pytest.approx(0.3)

    def test_the_gradient_is_the_sum_of_the_gradients(self, model, quantities):
        total, parts = Objective(cross_entropy(), regularizers={"l2": Term(bound(L2()), 0.25)})(quantities, 0)
        (loss,) = torch.autograd.grad(parts["loss"], model.weight, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(total, model.weight)[0], loss + 0.5 * model.weight)

    def test_state_and_parameters_of_its_components_are_its_own(self, quantities):
        class Learned(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.temperature = nn.Parameter(torch.tensor(2.0))

            def forward(self, logits: Tensor, target: Tensor) -> Tensor:
                return nn.functional.cross_entropy(logits / self.temperature, target)

        def make() -> Objective:
            return Objective(bound(Learned()), regularizers={"spectral": Term(bound(Spectral()), 0.1)})

        objective, fresh = make(), make()
        objective(quantities, 0)[0].backward()
        assert objective.loss.module.temperature.grad is not None
        assert set(objective.state_dict()) == {"loss.module.temperature", "regularizers.spectral.bound.module.u/weight"}
        fresh.load_state_dict(objective.state_dict())
        assert torch.equal(fresh(quantities, 1)[0], objective(quantities, 1)[0])


class TestPerSample:
    def test_reduction_is_put_back(self, quantities):
        objective = Objective(cross_entropy())
        torch.testing.assert_close(objective.per_sample_loss(quantities), each(quantities))
        assert objective.loss.module.reduction == "mean"

    def test_reduction_is_put_back_after_an_error(self, quantities):
        objective = Objective(cross_entropy())
        with pytest.raises(IndexError):
            objective.per_sample_loss(quantities.replace(target=torch.full((6,), 9)))
        assert objective.loss.module.reduction == "mean"

    def test_several_elements_a_sample_are_averaged(self):
        logits, target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
        values = Objective(cross_entropy()).per_sample_loss(Quantities(logits=logits, target=target))
        torch.testing.assert_close(values, nn.functional.cross_entropy(logits, target, reduction="none").mean(dim=(1, 2)))

    def test_a_loss_without_reduction_cannot(self, quantities):
        def total(logits: Tensor) -> Tensor:
            return logits.sum()

        with pytest.raises(ValueError, match="function has no reduction"):
            Objective(bound(total)).per_sample_loss(quantities)

    def test_regularizers_may_ask_for_it_and_for_the_loss(self, quantities):
        class Spread(nn.Module):
            def forward(self, per_sample_loss: Tensor) -> Tensor:
                return per_sample_loss.var()

        class Doubled(nn.Module):
            def forward(self, loss_fn, logits: Tensor, target: Tensor) -> Tensor:
                return loss_fn(Quantities(logits=2 * logits, target=target))

        _, parts = Objective(cross_entropy(), regularizers={"spread": Term(bound(Spread())), "doubled": Term(bound(Doubled()))})(quantities, 0)
        torch.testing.assert_close(parts["regularizer.spread"], each(quantities).var())
        torch.testing.assert_close(parts["regularizer.doubled"], nn.functional.cross_entropy(2 * quantities["logits"], quantities["target"]))

    def test_it_costs_nothing_where_nobody_asks(self, quantities):
        calls = []

        class Counting(nn.CrossEntropyLoss):
            def forward(self, input: Tensor, target: Tensor) -> Tensor:
                calls.append(self.reduction)
                return super().forward(input, target)

        Objective(bound(Counting(), input="logits"))(quantities, 0)
        assert calls == ["mean"]


class TestReweighting:
    def test_is_the_mean_of_weight_times_loss(self, quantities):
        def weights(index: Tensor) -> Tensor:
            return index.float()

        total, parts = Objective(cross_entropy(), reweighting=bound(weights), regularizers={"l2": Term(bound(L2()), 1.0)})(quantities, 0)
        torch.testing.assert_close(parts["loss"], (torch.arange(6.0) * each(quantities)).mean())
        torch.testing.assert_close(total, parts["loss"] + parts["regularizer.l2"])

    def test_weights_of_one_change_nothing(self, quantities):
        def ones(index: Tensor) -> Tensor:
            return torch.ones(len(index))

        torch.testing.assert_close(Objective(cross_entropy(), reweighting=bound(ones))(quantities, 0)[0], each(quantities).mean())

    def test_it_may_look_at_the_losses(self, quantities):
        def hardest(per_sample_loss: Tensor) -> Tensor:
            return (per_sample_loss >= per_sample_loss.max()).float()

        torch.testing.assert_close(Objective(cross_entropy(), reweighting=bound(hardest))(quantities, 0)[0], each(quantities).max() / 6)


class TestMixtures:
    """What a mixing transform leaves in the batch: ``mix_target`` and ``mix_weight``."""

    @pytest.fixture
    def mixed(self, quantities):
        return quantities.replace(mix_target={"target": torch.tensor([2, 2, 0, 0, 1, 1])}, mix_weight=torch.tensor(0.3))

    def expected(self, mixed: Quantities) -> Tensor:
        return 0.3 * each(mixed) + 0.7 * each(mixed, mixed["mix_target"]["target"])

    def test_the_losses_are_mixed(self, mixed):
        torch.testing.assert_close(Objective(cross_entropy())(mixed, 0)[0], self.expected(mixed).mean())

    def test_each_samples_too(self, mixed):
        torch.testing.assert_close(Objective(cross_entropy()).per_sample_loss(mixed), self.expected(mixed))

    def test_auxiliary_losses_are_mixed_and_regularizers_are_not(self, mixed):
        class OnTarget(nn.Module):
            def forward(self, target: Tensor) -> Tensor:
                return target.float().mean()

        terms = {"on_target": Term(bound(OnTarget()))}
        _, parts = Objective(cross_entropy(), auxiliary=terms, regularizers=terms)(mixed, 0)
        assert parts["regularizer.on_target"].item() == pytest.approx(1.0)  # mean of 0 1 2 2 1 0, and as many of the partners
        assert parts["auxiliary.on_target"].item() == pytest.approx(1.0)
        shifted = mixed.replace(mix_target={"target": torch.full((6,), 2)})
        _, parts = Objective(cross_entropy(), auxiliary=terms, regularizers=terms)(shifted, 0)
        assert parts["regularizer.on_target"].item() == pytest.approx(1.0)
        assert parts["auxiliary.on_target"].item() == pytest.approx(0.3 * 1 + 0.7 * 2)

    def test_quantities_that_follow_from_the_target_follow_the_partners(self, mixed):
        eye = torch.eye(3)
        with_lazy = mixed.replace(target_multi_hot=lazy(lambda q: eye[q["target"]]))
        loss = bind(nn.BCEWithLogitsLoss(), [*OFFERED, "target_multi_hot"], name="bce", task="t", inputs={"input": "logits", "target": "target_multi_hot"})
        soft = 0.3 * eye[mixed["target"]] + 0.7 * eye[mixed["mix_target"]["target"]]
        torch.testing.assert_close(Objective(loss)(with_lazy, 0)[0], nn.functional.binary_cross_entropy_with_logits(mixed["logits"], soft))

    def test_half_precision_losses_stay_so(self, mixed):
        half = mixed.replace(logits=mixed["logits"].to(torch.bfloat16))
        assert Objective(cross_entropy())(half, 0)[0].dtype == torch.bfloat16
