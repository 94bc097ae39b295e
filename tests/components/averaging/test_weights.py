from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import nn

from components.averaging import EMA, SWA
from components.schedules import Constant, Linear, Scaled
from components.testing.averaging import STEPS, Killed, SaveAndKill, assert_same, read

STATISTICS = ("body.1.running_mean", "body.1.running_var")
CURRENT = ("memory", "body.1.num_batches_tracked")  # never averaged


def assert_close(left, right, names, tolerance=1e-5):
    for name in names:
        torch.testing.assert_close(left[name], right[name], rtol=tolerance, atol=tolerance)


def averaged_names(module) -> list[str]:
    return [name for name, _ in module.named_parameters()] + list(STATISTICS)


class TestEMA:
    @pytest.mark.parametrize("decay_warmup", [False, True])
    @pytest.mark.parametrize(("every", "start"), [(1, 0), (3, 5), (2, 0.25)])
    def test_is_the_recursion(self, decay_warmup, every, start, data, net, make_trainer):
        module = net()
        average = EMA(decay=0.8, decay_warmup=decay_warmup, every_n_steps=every, start=start, total_steps=STEPS)
        make_trainer([average]).fit(module, datamodule=data())
        begin = 6 if start == 0.25 else start
        expected = None
        for count, step in enumerate(range(begin, STEPS, every)):
            decay = min(0.8, (1 + count) / (10 + count)) if decay_warmup else 0.8
            current = {name: module.after[step][name].double() for name in averaged_names(module)}
            expected = current if expected is None else {n: decay * expected[n] + (1 - decay) * current[n] for n in current}
        assert_close({n: t.double() for n, t in module.state_dict().items()}, expected, expected)

    def test_decay_zero_is_the_current_weights_and_one_the_first(self, data, net, make_trainer):
        for decay, step in ((0.0, -1), (1.0, 0)):
            module = net()
            make_trainer([EMA(decay=decay, decay_warmup=False)]).fit(module, datamodule=data())
            assert_close(module.state_dict(), module.after[step], averaged_names(module), tolerance=0)

    def test_a_scheduled_decay(self, data, net, make_trainer):
        module, plain = net(), net()
        decay = Scaled(base=0.9, schedule=Linear(start_factor=1.0, end_factor=0.0))
        make_trainer([EMA(decay=decay, decay_warmup=False)]).fit(module, datamodule=data())  # length from the trainer
        expected = module.after[0]
        for step in range(1, STEPS):
            d = 0.9 * (1 - step / STEPS)
            expected = {n: d * expected[n].double() + (1 - d) * module.after[step][n].double() for n in averaged_names(module)}
        assert_close({n: t.double() for n, t in module.state_dict().items()}, expected, expected)
        make_trainer([EMA(decay=Constant(value=0.9), decay_warmup=False)]).fit(plain, datamodule=data())
        assert not torch.equal(plain.head.weight, module.head.weight)

    def test_one_update_an_optimizer_step_under_accumulation(self, data, net, make_trainer):
        average = EMA()
        make_trainer([average], accumulate_grad_batches=2).fit(net(), datamodule=data())
        assert average._count == STEPS // 2


class TestSWA:
    def test_is_the_mean_of_the_epochs_ends_from_start_on(self, data, net, make_trainer):
        module = net()
        make_trainer([SWA(start=0.5)]).fit(module, datamodule=data())
        ends = [module.after[step] for step in (17, 23)]  # half the run is step 12: the ends of epochs 3 and 4
        assert_close(module.state_dict(), {n: (ends[0][n] + ends[1][n]) / 2 for n in averaged_names(module)}, averaged_names(module))

    def test_is_the_mean_of_every_nth(self, data, net, make_trainer):
        module = net()
        make_trainer([SWA(start=5, every_n_steps=4)]).fit(module, datamodule=data())
        chosen = [module.after[step] for step in (5, 9, 13, 17, 21)]
        expected = {n: torch.stack([c[n] for c in chosen]).mean(0) for n in averaged_names(module)}
        assert_close(module.state_dict(), expected, expected)

    def test_with_the_lengths_that_the_builder_fills_in(self, data, net, make_trainer):
        ours, theirs = net(), net()
        make_trainer([SWA(total_steps=STEPS, steps_per_epoch=6)]).fit(ours, datamodule=data())
        make_trainer([SWA()]).fit(theirs, datamodule=data())
        assert_same(ours.state_dict(), theirs.state_dict())


class TestWhatIsAveraged:
    def test_counters_and_memories_are_the_current_ones(self, data, net, make_trainer):
        module = net()
        make_trainer([SWA(start=0, every_n_steps=1)]).fit(module, datamodule=data())
        for name in CURRENT:
            assert torch.equal(module.state_dict()[name], module.after[-1][name])
        assert int(module.memory[0]) == STEPS

    def test_statistics_averaged_or_copied(self, data, net, make_trainer):
        averaged, copied = net(), net()
        make_trainer([SWA(start=0, every_n_steps=1)]).fit(averaged, datamodule=data())
        make_trainer([SWA(start=0, every_n_steps=1, buffers="copy")]).fit(copied, datamodule=data())
        for name in STATISTICS:
            assert torch.equal(copied.state_dict()[name], copied.after[-1][name])
            torch.testing.assert_close(averaged.state_dict()[name], torch.stack([a[name] for a in averaged.after]).mean(0))

    def test_tied_weights_stay_tied(self, data, net, make_trainer, tmp_path):
        class Tied(net):
            def __init__(self, seed=0):
                super().__init__(seed)
                self.other = nn.Linear(6, 1)
                self.other.weight = self.head.weight

        module = Tied()
        trainer = make_trainer([EMA()])
        trainer.fit(module, datamodule=data())
        trainer.save_checkpoint(tmp_path / "tied.ckpt")
        state = read(tmp_path / "tied.ckpt")
        for part in ("state_dict", "current_model_state"):
            assert torch.equal(state[part]["other.weight"], state[part]["head.weight"])
        assert module.other.weight is module.head.weight and torch.equal(state["state_dict"]["head.weight"], module.head.weight)
        assert not torch.equal(state["current_model_state"]["head.weight"], module.head.weight)

    def test_half_precision_weights_are_averaged_in_float32(self, data, net, make_trainer):
        average, module = SWA(start=0, every_n_steps=1), net()
        make_trainer([average], precision="bf16-true").fit(module, datamodule=data())
        assert module.head.weight.dtype == torch.bfloat16 and average._average["head.weight"].dtype == torch.float32
        expected = torch.stack([a["head.weight"].float() for a in module.after]).mean(0)
        torch.testing.assert_close(average._average["head.weight"], expected, rtol=1e-5, atol=1e-6)


class TestWhenItActs:
    def test_validation_before_the_first_update_sees_the_current_weights(self, data, net, make_trainer):
        module = net()
        make_trainer([SWA(start=12, every_n_steps=1)]).fit(module, datamodule=data())
        early = [(step, state) for _, step, state in module.seen if step <= 12]
        assert early
        for step, state in early:
            assert_same(state, module.after[step - 1])

    def test_validation_sees_the_average_and_training_goes_on_from_the_current(self, data, net, make_trainer):
        module = net()
        make_trainer([SWA(start=0, every_n_steps=1)]).fit(module, datamodule=data())
        for _, step, state in module.seen:
            expected = {n: torch.stack([a[n] for a in module.after[:step]]).mean(0) for n in averaged_names(module)}
            assert_close(state, expected, expected)

    def test_an_error_in_validation_leaves_the_current_weights(self, data, net, make_trainer, tmp_path):
        module = net()
        with pytest.raises(Killed):
            make_trainer([SaveAndKill(4, tmp_path / "v.ckpt", in_validation=True), EMA()]).fit(module, datamodule=data())
        assert_same(module.state_dict(), module.after[-1])

    def test_a_second_fit_begins_anew(self, data, net, make_trainer):
        average, module, fresh = EMA(), net(), net()
        make_trainer([average]).fit(net(seed=3), datamodule=data())
        make_trainer([average]).fit(module, datamodule=data())
        make_trainer([EMA()]).fit(fresh, datamodule=data())
        assert_same(module.state_dict(), fresh.state_dict())


class TestCheckpoints:
    def test_one_taken_within_a_validation_has_each_in_its_place(self, data, net, make_trainer, tmp_path):
        module = net()
        with pytest.raises(Killed):
            make_trainer([SaveAndKill(10, tmp_path / "v.ckpt", in_validation=True), EMA()]).fit(module, datamodule=data())
        state = read(tmp_path / "v.ckpt")
        assert_same(state["current_model_state"], module.after[-1])
        assert_same(state["state_dict"], module.seen[-1][2])

    def test_the_last_one_can_be_trained_on(self, data, net, make_trainer, tmp_path):
        longer, short = net(), net()
        make_trainer([EMA()]).fit(longer, datamodule=data())
        trainer = make_trainer([EMA(), SaveAtEnd(tmp_path / "end.ckpt")], max_epochs=2)
        trainer.fit(short, datamodule=data())
        more = net(seed=1)
        make_trainer([EMA(), SaveAtEnd(tmp_path / "more.ckpt")]).fit(more, datamodule=data(), ckpt_path=tmp_path / "end.ckpt", weights_only=True)
        assert_same(more.state_dict(), longer.state_dict())

    def test_the_average_is_stored_once(self, data, net, make_trainer, tmp_path):
        trainer = make_trainer([EMA()])
        trainer.fit(net(), datamodule=data())
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        state = read(tmp_path / "a.ckpt")
        name = "head.weight"
        assert state["state_dict"][name].data_ptr() == state["averaging_state"]["average"][name].data_ptr()

    def test_a_run_without_average_can_be_resumed_with_one(self, data, net, make_trainer, tmp_path):
        module = net()
        with pytest.raises(Killed):
            make_trainer([SaveAndKill(15, tmp_path / "plain.ckpt")]).fit(net(), datamodule=data())
        average = SWA(start=0, every_n_steps=1)
        make_trainer([average, SaveAndKill(10**9, tmp_path)]).fit(module, datamodule=data(), ckpt_path=tmp_path / "plain.ckpt", weights_only=True)
        assert average._count == STEPS - 15

    def test_another_kind_of_average_is_refused(self, data, net, make_trainer, tmp_path):
        with pytest.raises(Killed):
            make_trainer([EMA(), SaveAndKill(5, tmp_path / "ema.ckpt")]).fit(net(), datamodule=data())
        with pytest.raises(ValueError, match="the checkpoint holds an average of the kind EMA; this run's is, but got 'SWA'"):
            make_trainer([SWA(), SaveAndKill(9, tmp_path)]).fit(net(), datamodule=data(), ckpt_path=tmp_path / "ema.ckpt", weights_only=True)

    def test_an_average_of_other_tensors_is_refused(self, data, net, make_trainer, tmp_path):
        with pytest.raises(Killed):
            make_trainer([EMA(), SaveAndKill(5, tmp_path / "ema.ckpt")]).fit(net(), datamodule=data())
        with pytest.raises(ValueError, match=r"names that only one of them has, but got \['body.1.running_mean', 'body.1.running_var'\]"):
            callbacks = [EMA(buffers="copy"), SaveAndKill(9, tmp_path)]
            make_trainer(callbacks).fit(net(), datamodule=data(), ckpt_path=tmp_path / "ema.ckpt", weights_only=True)


class SaveAtEnd(Checkpoint):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    ("make_bad", "message"),
    [
        (lambda: EMA(decay=1.5), r"decay must be in \[0, 1\], or a schedule, but got 1.5"),
        (lambda: EMA(decay=float("nan")), "decay must be in"),
        (lambda: EMA(every_n_steps=0), "every_n_steps must be an int >= 1"),
        (lambda: EMA(start=-1), "start must be >= 0"),
        (lambda: EMA(buffers="sum"), "buffers must be one of average, copy"),
        (lambda: SWA(start=1.5), "start as a fraction"),
        (lambda: SWA(total_steps=0), "total_steps must be >= 1"),
        (lambda: SWA(steps_per_epoch=0), "steps_per_epoch must be >= 1"),
    ],
)
def test_refuses(make_bad, message):
    with pytest.raises(ValueError, match=message):
        make_bad()


def test_a_decay_that_leaves_the_unit_interval_is_refused(data, net, make_trainer):
    with pytest.raises(ValueError, match=r"must stay in \[0, 1\]; at step 1 it is, but got 2.0"):
        make_trainer([EMA(decay=Constant(value=2.0), decay_warmup=False)]).fit(net(), datamodule=data())


def test_a_sharded_strategy_is_refused(data, net, make_trainer):
    from lightning.pytorch.strategies import FSDPStrategy

    trainer = make_trainer([])
    trainer.strategy.__class__ = type("Sharded", (FSDPStrategy,), {})
    with pytest.raises(ValueError, match="averaging works on whole weights"):
        EMA().setup(trainer, net(), "fit")
