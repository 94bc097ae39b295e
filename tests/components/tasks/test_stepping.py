"""Optimizers that ask the loop for more than gradients: the loss of all accumulated batches, two gradients, a loop without a scaler."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from tiny_tasks import LOSSES, TinyData, build, trainer
from torch import nn

from components.binding import bind
from components.losses import CrossEntropyLoss, KDLoss
from components.objective import Objective, Term
from components.optimizers import DOT, ImplicitFTRL, MoMo, MoMoAdam, NormalizedGD
from components.regularizers import L2
from components.reweighting import ClassBalanced
from components.tasks import BY_NAME, DistillationTask
from components.tasks.distillation import SeparateLosses
from components.transforms import Mixup

LOSS_AWARE = {
    "momo": partial(MoMo, lr=2.0, lower_bound=0.3),
    "momo_adam": partial(MoMoAdam, lr=0.05, lower_bound=0.3),
    "normalized_gd": partial(NormalizedGD, lr=0.3),
    "implicit_ftrl": partial(ImplicitFTRL, lr=2.0),
}


def parameters_of(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def largest_difference(left, right) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def fit(name, make, *, seen=None, **options):
    """Train a tiny task in float64 without a schedule; its start and itself. ``seen`` gathers the batches, epoch by epoch."""
    more = {key: options.pop(key) for key in ("loss", "data", "dropout", "transforms") if key in options}
    prepare = options.pop("prepare", None)
    task, data = build(name, optimizer=make, schedule=None, **more)
    if prepare is not None:
        prepare(task)
    start = copy.deepcopy(task).double()
    if seen is not None:
        step = task.training_step

        def keeping(batch, batch_idx):
            seen.append((task.current_epoch, batch_idx, batch))
            return step(batch, batch_idx)

        task.training_step = keeping
    loop = trainer(precision="64-true", limit_val_batches=0, **options)
    loop.fit(task, datamodule=data)
    return start, task, loop


def whole_batches(seen, accumulated):
    """What was accumulated, joined to one batch."""
    windows: dict[tuple[int, int], list] = {}
    for epoch, number, batch in seen:
        windows.setdefault((epoch, number // accumulated), []).append(batch)
    return [{key: torch.cat([b[key] for b in batches]) for key in ("inputs", "target")} for batches in windows.values()]


@pytest.mark.parametrize("optimizer", LOSS_AWARE)
@pytest.mark.parametrize("accumulated", [2, 3, 5, 8])  # of 5 batches an epoch: 1, 2, 0 and 5 are left at its end
def test_accumulated_batches_are_one_large_batch(optimizer, accumulated):
    seen = []
    start, task, loop = fit("classification", LOSS_AWARE[optimizer], seen=seen, max_epochs=4, accumulate_grad_batches=accumulated)
    plain = LOSS_AWARE[optimizer](start.model.parameters())
    batches = whole_batches(seen, accumulated)
    assert len(batches) == loop.global_step == 4 * -(-5 // accumulated)
    for batch in batches:
        plain.zero_grad()
        loss = nn.functional.cross_entropy(start.model(batch["inputs"]).output, batch["target"])
        loss.backward()
        plain.step(loss=loss)
    assert largest_difference(parameters_of(task.model), parameters_of(start.model)) < 1e-10


def test_an_accumulated_step_differs_from_one_by_the_last_loss():
    """The trial above can fail: with the last batch's share of the loss the step is another one."""
    _, whole, _ = fit("classification", LOSS_AWARE["momo"], max_epochs=4, accumulate_grad_batches=2)
    _, last, _ = fit("classification", partial(Deaf, lr=2.0, lower_bound=0.3), max_epochs=4, accumulate_grad_batches=2)
    assert largest_difference(parameters_of(whole.model), parameters_of(last.model)) > 1e-3


class Deaf(MoMo):
    """MoMo that does not say what it needs."""

    steps_by_the_loss = False


def test_clipping_acts_on_the_gradient_of_all_batches():
    seen, options = [], {"max_epochs": 3, "accumulate_grad_batches": 2, "gradient_clip_val": 0.05}
    start, task, _ = fit("classification", LOSS_AWARE["momo"], seen=seen, **options)
    plain = LOSS_AWARE["momo"](start.model.parameters())
    for batch in whole_batches(seen, 2):
        plain.zero_grad()
        loss = nn.functional.cross_entropy(start.model(batch["inputs"]).output, batch["target"])
        loss.backward()
        nn.utils.clip_grad_norm_(start.model.parameters(), 0.05)
        plain.step(loss=loss)
    assert largest_difference(parameters_of(task.model), parameters_of(start.model)) < 1e-10


def test_other_optimizers_see_lightnings_own_gradients():
    seen = []
    start, task, _ = fit("classification", partial(torch.optim.SGD, lr=0.1), seen=seen, max_epochs=1, accumulate_grad_batches=2)
    for number in range(0, 5, 2):
        start.zero_grad()
        for _, _, batch in seen[number : number + 2]:
            (nn.functional.cross_entropy(start.model(batch["inputs"]).output, batch["target"]) / 2).backward()
        with torch.no_grad():
            for p in start.model.parameters():
                p -= 0.1 * p.grad
    assert largest_difference(parameters_of(task.model), parameters_of(start.model)) < 1e-10


class TestRefused:
    def message(self, name="classification", make=None, **options) -> str:
        task, data = build(name, optimizer=make)
        before = parameters_of(task)
        with pytest.raises(ValueError) as refused:
            trainer(**options).fit(task, datamodule=data)
        assert largest_difference(before, parameters_of(task)) == 0
        return str(refused.value)

    def scaler(self):
        return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))

    @pytest.mark.parametrize("optimizer", LOSS_AWARE)
    def test_a_scaler_hides_the_loss(self, optimizer):
        told = self.message(make=LOSS_AWARE[optimizer], plugins=[self.scaler()])
        assert all(part in told for part in (LOSS_AWARE[optimizer].func.__name__, "16-mixed", "take trainer.precision=bf16-mixed or 32-true"))

    def test_a_scaler_sees_one_of_two_gradients(self):
        assert "DOT takes two gradients" in self.message("distillation", DOT, plugins=[self.scaler()])

    def test_an_update_that_needs_no_loss_goes_with_a_scaler(self):
        task, data = build("classification", optimizer=partial(ImplicitFTRL, update="linear"))
        loop = trainer(plugins=[self.scaler()], max_steps=2)
        loop.fit(task, datamodule=data)
        assert loop.global_step == 2

    @pytest.mark.parametrize("make", [torch.optim.LBFGS, partial(ImplicitFTRL, update="mirror_prox")])
    def test_batches_that_are_gone_cannot_be_evaluated_again(self, make):
        assert "evaluates its batch several times a step" in self.message(make=make, accumulate_grad_batches=2)

    def test_one_of_two_gradients_cannot_be_clipped(self):
        assert "trainer.gradient_clip_val would clip one only" in self.message("distillation", DOT, gradient_clip_val=1.0)

    @pytest.mark.parametrize("name", [name for name in LOSSES if not issubclass(BY_NAME[name], DistillationTask)])
    def test_tasks_with_one_loss(self, name):
        told = self.message(name, DOT)
        assert "DOT takes the gradients of two losses" in told and "take task=distillation" in told

    def test_a_builder_may_ask_before_there_is_a_run(self):
        task, _ = build("classification", optimizer=DOT)
        with pytest.raises(ValueError, match="DOT takes the gradients of two losses"):
            task.prepare_for(DOT([nn.Parameter(torch.zeros(2))]), trainer())
        student, data = build("distillation", optimizer=partial(DOT, lr=0.05))
        alike, _ = build("distillation", optimizer=partial(DOT, lr=0.05))
        student.prepare_for(DOT([nn.Parameter(torch.zeros(2))]), trainer())
        for each in (student, alike):
            trainer(max_epochs=2).fit(each, datamodule=data)
        assert largest_difference(parameters_of(student), parameters_of(alike)) == 0

    def test_distillation_without_a_loss_of_the_teachers(self):
        task, data = build("distillation", optimizer=DOT, loss=CrossEntropyLoss())
        with pytest.raises(ValueError, match=r"take loss=kd, which is both, or one of each.*loss=cross_entropy .*the only side.*loss"):
            trainer().fit(task, datamodule=data)


def with_auxiliary(task):
    """Cross-entropy and, beside it, the teacher's term alone; and a regularizer, the task's."""
    auxiliary = bind(KDLoss(alpha=1.0, temperature=2.0), task.offered, name="auxiliary.kd", task="distillation")
    l2 = bind(L2(), task.offered, name="regularizer.l2", task="distillation")
    task.objective = Objective(task.objective.loss, {"kd": Term(auxiliary, 0.7)}, {"l2": Term(l2, 0.01)})


class TestDistillation:
    """DOT in a distillation: each of its two gradients is the right one."""

    def by_hand(self, start, batches, make, alpha=0.5, temperature=4.0):
        """A plain loop over whole batches that hands DOT a pair of losses."""
        optimizer = make(start.model.parameters())
        for batch in batches:

            def pair(batch=batch):
                logits, labels = start.model(batch["inputs"]).output, batch["target"]
                with torch.no_grad():
                    teacher = start.teacher.eval()(batch["inputs"]).output
                task = (1 - alpha) * nn.functional.cross_entropy(logits, labels)
                kl = nn.functional.kl_div((logits / temperature).log_softmax(1), (teacher / temperature).log_softmax(1), reduction="batchmean", log_target=True)
                return task, alpha * temperature**2 * kl

            optimizer.step(pair)
        return parameters_of(start.model)

    @pytest.mark.parametrize("accumulated", [1, 2])
    def test_kd_gives_its_halves(self, accumulated):
        seen, make = [], partial(DOT, lr=0.05, delta=0.075, weight_decay=1e-3)
        batches = {"data": TinyData("distillation", samples=24)}
        start, task, _ = fit("distillation", make, seen=seen, max_epochs=3, accumulate_grad_batches=accumulated, **batches)
        assert largest_difference(parameters_of(task.model), self.by_hand(start, whole_batches(seen, accumulated), make)) < 1e-10

    def test_terms_that_look_at_the_teacher_are_the_distillations(self):
        seen, make = [], partial(DOT, lr=0.05)
        start, task, _ = fit("distillation", make, seen=seen, max_epochs=3, loss=CrossEntropyLoss(), prepare=with_auxiliary)
        batches = whole_batches(seen, 1)
        plain = DOT(start.model.parameters(), lr=0.05)
        for batch in batches:
            plain.zero_grad()
            quantities = start.quantities({**batch, "index": torch.arange(4)})
            main, regularizer = start.objective.main_loss(quantities), start.objective.regularizers["l2"].bound(quantities)
            plain.distill(0.7 * start.objective.auxiliary["kd"].bound(quantities))
            (main + 0.01 * regularizer).backward()
            plain.step()
        assert largest_difference(parameters_of(task.model), parameters_of(start.model)) < 1e-10

    @pytest.mark.parametrize("prepare", [None, with_auxiliary])
    def test_equal_momenta_are_sgd_on_the_sum(self, prepare):
        options = {"max_epochs": 3, "prepare": prepare, "loss": KDLoss() if prepare is None else CrossEntropyLoss()}
        _, dot, _ = fit("distillation", partial(DOT, lr=0.05, delta=0.0, weight_decay=1e-3), **options)
        _, sgd, _ = fit("distillation", partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3), **options)
        assert largest_difference(parameters_of(dot.model), parameters_of(sgd.model)) < 1e-12

    def test_a_distillation_of_zero_leaves_the_shorter_momentum(self):
        options = {"max_epochs": 3, "loss": KDLoss(alpha=0.0)}
        _, dot, _ = fit("distillation", partial(DOT, lr=0.05, delta=0.075), **options)
        _, sgd, _ = fit("distillation", partial(torch.optim.SGD, lr=0.05, momentum=0.825), **options)
        assert largest_difference(parameters_of(dot.model), parameters_of(sgd.model)) < 1e-12

    def test_different_momenta_make_a_difference(self):
        ends = [parameters_of(fit("distillation", partial(DOT, lr=0.05, delta=delta), max_epochs=3)[1].model) for delta in (0.0, 0.075)]
        assert largest_difference(*ends) > 1e-4

    def test_resumes_bit_for_bit(self, tmp_path):
        make = partial(DOT, lr=0.05)
        whole, data = build("distillation", optimizer=make, dropout=0.2)
        trainer(max_epochs=4).fit(whole, datamodule=data)
        part, data = build("distillation", optimizer=make, dropout=0.2)
        loop = trainer(max_epochs=2)
        loop.fit(part, datamodule=data)
        loop.save_checkpoint(tmp_path / "a.ckpt")
        resumed, data = build("distillation", optimizer=make, dropout=0.2, seed=5)
        trainer(max_epochs=4).fit(resumed, datamodule=data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
        assert largest_difference(parameters_of(whole), parameters_of(resumed)) == 0


class TestSeparateLosses:
    """The sides add up to the objective as it is without them, whatever is around the main loss."""

    @pytest.mark.parametrize("mix", [False, True])
    @pytest.mark.parametrize("reweighted", [False, True])
    def test_sides_are_the_whole(self, mix, reweighted):
        task, data = build("distillation", loss=KDLoss(alpha=0.3))
        task.double()
        weights = bind(ClassBalanced(class_counts=[7, 7, 6]), task.offered, name="reweighting", task="distillation") if reweighted else None
        whole = Objective(task.objective.loss, reweighting=weights)
        separate = SeparateLosses(whole, "DOT")
        batch = next(iter(data.train_dataloader()))
        batch["inputs"] = batch["inputs"].double()
        quantities = task.quantities(Mixup(alpha=1.0)(batch) if mix else batch)
        expected, parts = whole(quantities, 0)
        total, separated = separate(quantities, 0)
        expected, total = expected.detach(), total.detach()
        assert float(total - expected) == pytest.approx(0, abs=1e-12) and separated.keys() == parts.keys()
        assert float((separated["loss"] - parts["loss"]).detach()) == pytest.approx(0, abs=1e-12)
        alone = Objective(bind(KDLoss(alpha=0.3).apart()[1], task.offered, name="loss", task="distillation"), reweighting=weights)
        assert float((separate.sides[1] - alone(quantities, 0)[0]).detach()) == pytest.approx(0, abs=1e-12)
        assert separate.state_dict().keys() == whole.state_dict().keys()
