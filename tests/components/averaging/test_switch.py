import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from components.averaging import EMA, SwitchEMA
from components.schedules import Constant
from components.testing.averaging import STEPS, Data, Net, assert_same, trainer_for


def run(callbacks, tmp_path, **options) -> Net:
    module = Net()
    trainer_for(callbacks, tmp_path, **options).fit(module, datamodule=Data())
    return module


class One(Net):
    """A number that starts at 0 and that each optimizer step sets to 1."""

    def __init__(self) -> None:
        super().__init__()
        del self.body, self.head, self.blocks
        self.theta = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def training_step(self, batch, batch_idx):
        return 0.5 * (self.theta - 1) ** 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Momenta(Callback):
    """Notes the momentum before and after the average has acted."""

    def __init__(self) -> None:
        self.notes = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.notes.append([s["momentum_buffer"].clone() for s in trainer.optimizers[0].state.values()])


class TestSwitchEMA:
    def test_worked_value(self, tmp_path):
        module, average = One(), SwitchEMA(decay=0.9, interval=2)
        trainer_for([average], tmp_path, max_steps=2, max_epochs=None).fit(module, datamodule=Data())
        assert [float(state["theta"]) for state in module.after] == [1.0, pytest.approx(0.19, abs=1e-15)]
        assert torch.equal(module.after[1]["theta"], average._average["theta"])

    def test_never_switching_is_the_plain_average(self, tmp_path):
        never = run([SwitchEMA(decay=0.9, interval=math.inf)], tmp_path)
        plain = run([EMA(decay=0.9, decay_warmup=False, begin="initial")], tmp_path)
        late = run([SwitchEMA(decay=0.9, switch_start=STEPS)], tmp_path)
        for module in (never, late):
            assert_same(module.after, plain.after)
            assert_same(module.seen, plain.seen)
            assert_same(module.state_dict(), plain.state_dict())

    def test_decay_zero_is_the_plain_run(self, tmp_path):
        switching, plain = run([SwitchEMA(decay=0.0)], tmp_path), run([], tmp_path)
        assert_same(switching.after, plain.after)
        assert_same(switching.state_dict(), plain.state_dict())

    @pytest.mark.parametrize("interval", [None, 4, 0.5])
    def test_weights_are_the_average_after_each_interval_and_only_there(self, interval, tmp_path):
        module, equal = Net(), []

        class Compare(Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                equal.append(all(torch.equal(tensor, average._average[name]) for name, tensor in average._live.items()))

        average = SwitchEMA(decay=0.9, interval=interval)
        trainer_for([average, Compare()], tmp_path).fit(module, datamodule=Data())
        steps = {None: 6, 4: 4, 0.5: 12}[interval]
        assert equal == [(step + 1) % steps == 0 for step in range(STEPS)]

    def test_is_the_recursion_and_keeps_the_optimizers_state(self, tmp_path):
        module, before, after = Net(), Momenta(), Momenta()
        trainer_for([before, SwitchEMA(decay=0.9), after], tmp_path).fit(module, datamodule=Data())
        assert all(torch.equal(a, b) for one, other in zip(before.notes, after.notes, strict=True) for a, b in zip(one, other, strict=True))

        twin, data = Net(), Data()  # by hand, in the order of the batches
        average = {n: t.detach().clone() for n, t in twin.named_parameters()}
        trainer = trainer_for([ByHand(average)], tmp_path)
        trainer.fit(twin, datamodule=data)
        for name, value in average.items():
            torch.testing.assert_close(module.after[-1][name], value, rtol=1e-5, atol=1e-6)

    def test_default_decay_follows_the_interval(self, tmp_path):
        for interval, expected in ((None, 1 - 5 / 6), (12, 1 - 5 / 12), (2, 0.0), (math.inf, 0.999)):
            average = SwitchEMA(interval=interval)
            run([average], tmp_path, max_epochs=1)
            assert average.decay == pytest.approx(expected)

    def test_the_authors_warm_up(self):
        average = SwitchEMA(decay=0.9998, warmup_length=2000)
        for count in (1, 10, 2000, 100_000):
            m = 2e-4
            assert average.share(count, 0) == pytest.approx((1 - m) * math.exp(-count / 2000) + m, rel=1e-9)
        assert SwitchEMA(decay=0.9).share(1, 0) == pytest.approx(0.1)

    def test_a_scheduled_decay(self, tmp_path):
        ours, theirs = run([SwitchEMA(decay=Constant(value=0.9))], tmp_path), run([SwitchEMA(decay=0.9)], tmp_path)
        assert_same(ours.state_dict(), theirs.state_dict())

    def test_noisy_quadratic_has_a_smaller_variance_and_the_same_mean(self):
        # theta <- theta - lr h (theta - xi): stationary variance lr h / (2 - lr h) for the plain run
        rate, chains, steps = 0.5, 4000, 200
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(steps, chains, generator=generator, dtype=torch.float64)
        average = SwitchEMA(decay=0.8, interval=20)
        average._interval = 20
        plain = switching = torch.zeros(chains, dtype=torch.float64)
        mean = switching
        for step in range(steps):
            plain = plain - rate * (plain - noise[step])
            switching = switching - rate * (switching - noise[step])
            mean = torch.lerp(mean, switching, average.share(step + 1, step))
            if average.switches(step):
                switching = mean
        assert float(plain.var()) == pytest.approx(rate / (2 - rate), rel=0.1)
        assert float(switching.var()) < 0.5 * float(plain.var())
        for values in (plain, switching):
            assert abs(float(values.mean())) < 4 * float(values.std()) / chains**0.5


class ByHand(Callback):
    def __init__(self, average) -> None:
        self.average = average

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with torch.no_grad():
            for name, parameter in pl_module.named_parameters():
                self.average[name].copy_(0.9 * self.average[name] + 0.1 * parameter)
                if trainer.global_step % 6 == 0:
                    parameter.copy_(self.average[name])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"decay": 1.5}, "decay must be in"),
        ({"interval": 0}, "interval must be > 0"),
        ({"interval": 1.5}, "interval as a fraction"),
        ({"switch_start": -1}, "switch_start must be >= 0"),
        ({"warmup_length": -1}, "warmup_length must be"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be >= 1"),
    ],
)
def test_refuses(bad, message):
    with pytest.raises(ValueError, match=message):
        SwitchEMA(**bad)
