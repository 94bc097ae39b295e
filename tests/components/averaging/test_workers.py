import pytest
import torch
from lightning.pytorch.callbacks import Callback

from components.averaging import WorkerAggregation
from components.averaging.aggregation import RULES
from components.testing.averaging import STEPS, Data, Net, trainer_for

WORKERS = 4


class Watching(Net):
    """Notes each worker's gradient by computing it anew, and what the optimizer is given; weights in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.double()
        self.body[1].track_running_stats = False
        self.body[1].running_mean = self.body[1].running_var = self.body[1].num_batches_tracked = None
        self.own, self.given, self.targets = [], [], []

    def training_step(self, batch, batch_idx):
        batch = {name: value.double() for name, value in batch.items()}
        self.targets.append(batch["target"].clone())
        with torch.enable_grad():
            gradients = torch.autograd.grad(super().training_step(batch, batch_idx), list(self.parameters()))
        self.own.append(torch.cat([g.flatten() for g in gradients]))
        return super().training_step(batch, batch_idx)

    def configure_gradient_clipping(self, optimizer, **options):
        self.given.append(torch.cat([p.grad.flatten() for p in self.parameters()]))


def run(tmp_path, module=None, accumulate=WORKERS, more=(), **options):
    module = Watching() if module is None else module
    callbacks = [WorkerAggregation(**options), *more]
    trainer_for(callbacks, tmp_path, accumulate_grad_batches=accumulate, val_check_interval=WORKERS * 4).fit(module, datamodule=Data(WORKERS))
    return module


def workers_of(module):
    return torch.stack(module.own).view(STEPS, WORKERS, -1)


class TestWorkerAggregation:
    @pytest.mark.parametrize("rule", ["mean", "median", "trimmed_mean", "geometric_median", "cva", "flag"])
    def test_the_optimizer_gets_the_rule_of_the_workers_own_gradients(self, rule, tmp_path):
        module = run(tmp_path, rule=rule, faulty=1)
        for own, given in zip(workers_of(module), module.given, strict=True):
            torch.testing.assert_close(given, RULES[rule](own, 1), rtol=1e-9, atol=1e-11)

    def test_attackers_are_the_last_workers(self, tmp_path):
        module = run(tmp_path, rule="mean", byzantine=1, attack="sign_flip", attack_scale=3.0)
        for own, given in zip(workers_of(module), module.given, strict=True):
            torch.testing.assert_close(given, (own[0] + own[1] + own[2] - 3 * own[3]) / 4, rtol=1e-9, atol=1e-11)

    def test_local_momentum(self, tmp_path):
        module = run(tmp_path, rule="median", momentum=0.9)
        momenta = torch.zeros_like(workers_of(module)[0])
        for own, given in zip(workers_of(module), module.given, strict=True):
            momenta = 0.9 * momenta + 0.1 * own
            torch.testing.assert_close(given, RULES["median"](momenta, 0), rtol=1e-9, atol=1e-11)

    def test_crashed_workers_send_nothing_more(self, tmp_path):
        module = run(tmp_path, rule="mean", crashed=1, crash_after=10)
        for step, (own, given) in enumerate(zip(workers_of(module), module.given, strict=True)):
            torch.testing.assert_close(given, own[: 4 if step < 10 else 3].mean(0), rtol=1e-9, atol=1e-11)

    def test_without_faults_the_mean_is_the_plain_run(self, tmp_path):
        plain, mean = Watching(), Watching()
        trainer_for([], tmp_path, accumulate_grad_batches=WORKERS, val_check_interval=WORKERS * 4).fit(plain, datamodule=Data(WORKERS))
        run(tmp_path, mean, rule="trimmed_mean")  # trims none: the mean
        for name, tensor in plain.state_dict().items():
            torch.testing.assert_close(mean.state_dict()[name], tensor, rtol=1e-8, atol=1e-10)

    def test_label_flip_changes_the_attackers_batches_alone(self, tmp_path):
        class Labels(Data):
            def __init__(self, batches=1):
                super().__init__(batches)
                self.target = self.target.sign().clamp(min=0)

        plain, flipped = Watching(), Watching()
        for module, byzantine in ((plain, 0), (flipped, 1)):
            callback = WorkerAggregation("mean", byzantine=byzantine, attack="label_flip", num_classes=2)
            trainer_for([callback], tmp_path, accumulate_grad_batches=WORKERS, val_check_interval=WORKERS * 4).fit(module, datamodule=Labels(WORKERS))
        for number, (one, other) in enumerate(zip(plain.targets, flipped.targets, strict=True)):
            assert torch.equal(one, other if number % WORKERS < 3 else 1 - other)

    @pytest.mark.parametrize("rule", ["median", "trimmed_mean", "cva", "flag"])
    def test_rules_withstand_what_the_mean_does_not(self, rule, tmp_path):
        losses = {}
        for name, byzantine, used in (("clean", 0, "mean"), ("mean", 1, "mean"), (rule, 1, rule)):
            module = run(tmp_path, Net(), rule=used, byzantine=byzantine, attack="random", attack_scale=30.0)
            with torch.no_grad():
                data = Data()
                losses[name] = float((module.eval().head(module.body(data.inputs[48:])).squeeze(1) - data.target[48:]).square().mean())
        assert losses[rule] < 0.5 * losses["mean"] or losses["mean"] != losses["mean"], losses

    def test_the_last_step_of_an_epoch_may_have_fewer_workers(self, tmp_path):
        module = run(tmp_path, Net(), accumulate=5, momentum=0.5, rule="median", byzantine=1)
        assert all(bool(torch.isfinite(p).all()) for p in module.parameters())

    def test_gradients_are_there_for_who_comes_later(self, tmp_path):
        seen = []

        class Norm(Callback):
            def on_before_optimizer_step(self, trainer, pl_module, optimizer):
                seen.append(all(p.grad is not None and p.grad.shape == p.shape for p in pl_module.parameters()))

        run(tmp_path, Net(), more=[Norm()], rule="median")
        assert seen == [True] * STEPS


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"rule": "krumm"}, "did you mean 'krum'"),
        ({"attack": "ali"}, "did you mean 'alie'"),
        ({"byzantine": -1}, "byzantine must be an int >= 0"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"attack": "label_flip", "byzantine": 1}, "needs data with classes"),
        ({"attack": "none", "attack_scale": 2.0}, "attack_scale is for"),
    ],
)
def test_refuses(bad, message):
    with pytest.raises(ValueError, match=message):
        WorkerAggregation(**bad)


@pytest.mark.parametrize(
    ("options", "accumulate", "message"),
    [
        ({}, 1, "set trainer.accumulate_grad_batches to their number"),
        ({"byzantine": 2, "crashed": 2}, 4, "must leave an honest worker"),
        ({"byzantine": 2}, 4, "faulty must be below half of the 4 workers"),
    ],
)
def test_refuses_at_the_start(options, accumulate, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, Net(), accumulate=accumulate, **options)
