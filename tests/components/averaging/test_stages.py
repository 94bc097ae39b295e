import copy
import inspect
import itertools

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from components.averaging import StageFailures, recovered
from components.averaging.stages import find_stages, own_groups
from components.models import MLP, TransformerLM
from components.testing.averaging import STEPS, Data, Net, assert_same, trainer_for


def scalar(value):
    return torch.tensor(float(value), dtype=torch.float64)


class Adam(Net):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class After(Callback):
    """Notes, after failures and before the step, each stage's weights and optimizer state."""

    def __init__(self, step: int) -> None:
        self.step, self.weights, self.states, self.rates = step, [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            state = trainer.optimizers[0].state
            self.weights = [copy.deepcopy(block.state_dict()) for block in pl_module.blocks]
            self.states = [[copy.deepcopy(state.get(p)) for p in block.parameters()] for block in pl_module.blocks]
            self.rates = [group["lr"] for block in pl_module.blocks for group in own_groups(trainer.optimizers[0], block.parameters())]


def fit(tmp_path, net=Net, **options):
    """(module, its callback, what stood after the failures before step 10), with stage 2 of 5 lost there unless said otherwise."""
    module, after = net(stages=5), After(10)
    failures = StageFailures(**{"failures": [[10, 2]]} | options)
    trainer_for([failures, after], tmp_path).fit(module, datamodule=Data())
    return module, failures, after


class TestRecovered:
    def test_worked_values(self):
        before, after = [torch.zeros(2, dtype=torch.float64)], [torch.ones(2, dtype=torch.float64)]
        assert recovered(before, after, scalar(1), scalar(3), 1.0)[0].tolist() == [0.75, 0.75]
        assert recovered(before, after, scalar(1), scalar(3**0.5))[0].tolist() == pytest.approx([0.75, 0.75])
        assert recovered(before, after, scalar(2), scalar(2))[0].tolist() == [0.5, 0.5]
        assert recovered(before, after, scalar(0), scalar(2))[0].tolist() == [1, 1]
        assert recovered(before, after, scalar(0), scalar(0))[0].tolist() == [0.5, 0.5]
        assert recovered(before, after, scalar(1), scalar(3), 0.0)[0].tolist() == [0.5, 0.5]

    def test_equal_neighbours_are_kept_and_counters_copied(self):
        same = [torch.randn(3), torch.tensor(7)]
        result = recovered(same, [same[0].clone(), torch.tensor(9)], scalar(0.3), scalar(1.7))
        torch.testing.assert_close(result[0], same[0])
        assert result[1].item() == 7 and result[1] is not same[1]

    def test_half_precision(self):
        result = recovered([torch.zeros(2, dtype=torch.bfloat16)], [torch.ones(2, dtype=torch.bfloat16)], scalar(1), scalar(1))
        assert result[0].dtype == torch.bfloat16 and result[0].tolist() == [0.5, 0.5]


class TestFailure:
    def test_weights_of_the_lost_stage(self, tmp_path):
        plain = Net(stages=5)
        trainer_for([], tmp_path).fit(plain, datamodule=Data())
        names = ("linear.weight", "linear.bias")
        before = [{name: plain.after[9][f"blocks.{i}.{name}"] for name in names} for i in range(5)]
        for recovery in ("mean", "previous", "random", "checkfree"):
            _, failures, after = fit(tmp_path, recovery=recovery)
            assert failures.failed == [(10, 2)]
            for stage in (0, 1, 3, 4):
                assert_same(dict(after.weights[stage]), before[stage])
            for name in names:
                left, right, found = before[1][name], before[3][name], after.weights[2][name]
                if recovery == "mean":
                    torch.testing.assert_close(found, (left + right) / 2)
                elif recovery == "previous":
                    assert torch.equal(found, left)
                elif recovery == "checkfree":  # on the line between them, but not in its middle
                    share = ((found - left) / (right - left)).flatten()
                    assert float(share.std()) < 1e-3 and 0 < float(share.mean()) < 1 and abs(float(share.mean()) - 0.5) > 1e-3
                else:
                    assert float(found.abs().max()) <= 1 / 6**0.5 and not torch.equal(found, before[2][name])

    def test_the_average_is_weighed_by_the_last_gradients(self, tmp_path):
        module = Net(stages=5)
        norms = []

        class Gradients(Callback):
            def on_before_optimizer_step(self, trainer, pl_module, optimizer):
                norms.append([torch.cat([p.grad.flatten() for p in block.parameters()]).norm() for block in pl_module.blocks])

        after = After(10)
        trainer_for([StageFailures(failures=[[10, 2]]), Gradients(), after], tmp_path).fit(module, datamodule=Data())
        left, right = module.after[9]["blocks.1.linear.weight"], module.after[9]["blocks.3.linear.weight"]
        one, other = norms[9][1] ** 2, norms[9][3] ** 2
        torch.testing.assert_close(after.weights[2]["linear.weight"], (one * left + other * right) / (one + other))

    def test_optimizer_state_of_the_lost_stage_alone_is_lost(self, tmp_path):
        _, _, lost = fit(tmp_path, Adam)
        _, _, kept = fit(tmp_path, Adam, failures=[])
        for stage in range(5):
            if stage == 2:
                assert lost.states[stage] == [None, None]  # as before its first step: torch begins it with zeros
            else:
                assert_same(lost.states[stage], kept.states[stage])
        module, _, _ = fit(tmp_path, Adam)
        assert all(bool(torch.isfinite(p).all()) for p in module.parameters())

    def test_learning_rate_of_the_lost_stage_is_raised_for_good(self, tmp_path):
        module = Net(stages=5)
        trainer = trainer_for([StageFailures(failures=[[10, 2], [15, 2]], lr_factor=1.2)], tmp_path)
        trainer.fit(module, datamodule=Data())
        groups = trainer.optimizers[0].param_groups
        assert [group["lr"] for group in groups] == [0.05, pytest.approx(0.05 * 1.44)]
        assert {id(p) for p in groups[1]["params"]} == {id(p) for p in module.blocks[2].parameters()}
        assert sum(len(group["params"]) for group in groups) == len(list(module.parameters()))

    def test_equal_neighbours_and_no_other_effect_is_a_no_op(self, tmp_path):
        class Tied(Net):
            """Stages that stay equal: their inputs are, and so their gradients are shared out alike."""

            def on_train_batch_start(self, batch, batch_idx):
                for block in self.blocks[2:4]:
                    block.load_state_dict(self.blocks[1].state_dict())

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.05)

        runs = []
        for failures in ([[10, 2]], []):
            module = Tied(stages=5)
            trainer_for([StageFailures(failures=failures, lr_factor=1.0)], tmp_path).fit(module, datamodule=Data())
            runs.append(module.after)
        for lost, kept in zip(*runs, strict=True):
            for name in lost:
                torch.testing.assert_close(lost[name], kept[name], rtol=1e-5, atol=1e-6)

    def test_rollback_goes_back_to_the_last_snapshot(self, tmp_path):
        module, _, after = fit(tmp_path, recovery="rollback", rollback_every=4)
        assert_same(dict(after.weights[2]), {n: module.after[7][f"blocks.2.{n}"] for n in after.weights[2]})
        _, _, first = fit(tmp_path, recovery="rollback", rollback_every=100)
        assert_same(dict(first.weights[0]), dict(Net(stages=5).blocks[0].state_dict()))
        assert first.states[0] == [None, None]

    @pytest.mark.parametrize(("stage", "twin"), [(0, 1), (1, 0), (4, 3), (3, 4)])
    def test_plus_copies_an_outer_stage_from_its_twin(self, stage, twin, tmp_path):
        module, _, after = fit(tmp_path, recovery="checkfree_plus", failures=[[10, stage]])
        assert_same(dict(after.weights[stage]), {n: module.after[9][f"blocks.{twin}.{n}"] for n in after.weights[stage]})

    def test_plus_swaps_the_outer_stages_in_every_second_batch_and_swaps_back(self, tmp_path):
        orders = []

        class Watching(Net):
            def training_step(self, batch, batch_idx):
                orders.append([names.index(id(block)) for block in self.blocks])
                return super().training_step(batch, batch_idx)

        module = Watching(stages=5)
        names = [id(block) for block in module.blocks]
        trainer_for([StageFailures(probability=0.0, recovery="checkfree_plus")], tmp_path).fit(module, datamodule=Data())
        assert orders == [[0, 1, 2, 3, 4], [1, 0, 2, 4, 3]] * (STEPS // 2)
        assert [id(block) for block in module.blocks] == names


class TestChance:
    def test_failures_are_a_function_of_seed_and_step(self):
        one, same, other = (StageFailures(0.2, seed=seed) for seed in (1, 1, 2))
        draws = [[f.failing(step, 8) for step in range(200)] for f in (one, same, other)]
        assert draws[0] == draws[1] != draws[2]

    def test_rate_and_which_stages(self):
        failing = StageFailures(0.05)
        lost = [stage for step in range(1, 4001) for stage in failing.failing(step, 6)]
        assert set(lost) == {1, 2, 3, 4} and len(lost) == pytest.approx(4000 * 4 * 0.05, rel=0.12)
        plus = StageFailures(0.05, "checkfree_plus")
        assert {s for step in range(1, 400) for s in plus.failing(step, 6)} == set(range(6))
        for step in range(1, 400):
            together = StageFailures(0.5).failing(step, 6)
            assert all(b - a > 1 for a, b in itertools.pairwise(together))
        assert StageFailures(1.0).failing(0, 6) == [] and StageFailures(1.0).failing(1, 6) == [1, 3]


class TestGPT:
    def test_a_failure_in_mid_training(self):
        spikes, steps = gpt_recovery()
        assert spikes["checkfree"] < spikes["random"], spikes
        assert steps["checkfree"] < steps["rollback"], steps


def gpt_recovery(at=150, rollback=60, horizon=80):
    """Loss right after the loss of a stage, over the one before it, and steps until it is made up for: by recovery, on Python's own text."""
    text = torch.tensor(list(inspect.getsource(inspect).encode())[:40_000])
    torch.manual_seed(0)
    model = TransformerLM(256, 32, width=32, depth=6, num_heads=2)
    failures = StageFailures()
    failures._container = find_stages(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    held_out = torch.stack([text[s : s + 33] for s in range(36_000, 39_000, 100)])

    def loss(windows, network):
        return nn.functional.cross_entropy(network(windows[:, :-1]).output, windows[:, 1:])

    def train(network, optimizer, seed):
        starts = torch.randint(35_000, (16,), generator=torch.Generator().manual_seed(seed)).tolist()
        optimizer.zero_grad()
        loss(torch.stack([text[s : s + 33] for s in starts]), network).backward()

    for step in range(at):
        if step == at - rollback:
            old = (copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()))
        train(model, optimizer, step)
        failures.on_before_optimizer_step(None, None, optimizer)
        optimizer.step()
    with torch.no_grad():
        reached = float(loss(held_out, model))
    spikes, steps = {}, {}
    for recovery in ("checkfree", "random", "rollback"):
        network = copy.deepcopy(model)
        twin = torch.optim.AdamW(network.parameters(), lr=3e-3)
        twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        if recovery == "rollback":
            network.load_state_dict(old[0])
            twin.load_state_dict(copy.deepcopy(old[1]))
        else:
            mine = StageFailures(recovery=recovery)
            mine._container, mine._norms, mine._step = find_stages(network), failures._norms, at
            mine.recover(3, network, [twin])
        losses = []
        for step in range(horizon):
            with torch.no_grad():
                losses.append(float(loss(held_out, network)))
            if losses[-1] <= reached:
                break
            train(network, twin, at + step)
            twin.step()
        spikes[recovery], steps[recovery] = losses[0] - reached, len(losses) - 1
    return spikes, steps


class TestFinding:
    def test_the_longest_row_of_like_blocks(self):
        model = TransformerLM(10, 8, width=8, depth=4, num_heads=1)
        assert find_stages(model) is model.blocks and find_stages(nn.ModuleDict({"model": model}), "blocks") is model.blocks
        assert find_stages(model, "blocks") is model.blocks

    def test_refuses(self):
        with pytest.raises(ValueError, match="needs blocks of the same shapes"):
            find_stages(MLP([4], 2, hidden=[3, 3]))
        with pytest.raises(ValueError, match=r"blocks of the same shapes \(blocks\), but got 'body'"):
            find_stages(Net(stages=3), "body")

    @pytest.mark.parametrize(
        ("stages", "options", "message"),
        [
            (2, {}, "needs at least 3 stages; the model has, but got 2"),
            (3, {"recovery": "checkfree_plus"}, "needs at least 4 stages"),
            (5, {"failures": [[3, 0]]}, "this stage of 5 cannot be lost, but got 0"),
            (5, {"failures": [[3, 7]]}, "this stage of 5 cannot be lost, but got 7"),
        ],
    )
    def test_refuses_at_the_start(self, stages, options, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            trainer_for([StageFailures(**options)], tmp_path).fit(Net(stages=stages), datamodule=Data())

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({"probability": 1.5}, "probability must be a number in"),
            ({"recovery": "checkfre"}, "did you mean 'checkfree'"),
            ({"weight_power": -1}, "weight_power must be"),
            ({"lr_factor": 0}, "lr_factor must be > 0"),
            ({"rollback_every": 0}, "rollback_every must be"),
            ({"failures": [[1]]}, "failures must be pairs"),
        ],
    )
    def test_refuses_options(self, bad, message):
        with pytest.raises(ValueError, match=message):
            StageFailures(**bad)
