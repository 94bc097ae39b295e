from pathlib import Path

import pytest
import torch
from test_resume import SaveEverywhere, state
from tiny_tasks import MLP, Recorder, TinyData, build, trainer
from torch.nn.functional import normalize

from components.binding import bind
from components.data import PairedViews
from components.losses import SymmetricInfoNCELoss, TripletAlignmentLoss
from components.objective import Objective
from components.reweighting import ConfidentConsensusDivision
from components.tasks import NoisyPairsTask


def with_division(seed: int = 0, **options):
    task, data = build("noisy_pairs", seed=seed, dropout=0.3, **options)
    loss = bind(TripletAlignmentLoss(), task.offered, name="loss", task="noisy_pairs")
    division = bind(ConfidentConsensusDivision(), task.offered, name="reweighting", task="noisy_pairs")
    task.objective = Objective(loss, reweighting=division)
    return task, data


class TestHeads:
    def test_the_objective_is_the_mean_of_both(self) -> None:
        task, data = build("noisy_pairs")
        q = task.quantities(data.fetch("train", torch.arange(8)))
        loss = TripletAlignmentLoss()
        one = loss(q["projections_1"], q["projections_2"], q["target"])
        other = loss(q["mix_target"]["projections_1"], q["mix_target"]["projections_2"], q["target"])
        assert not torch.equal(one, other)
        torch.testing.assert_close(task.objective(q, 0)[0], (one + other) / 2)

    def test_retrieval_is_by_the_mean_of_both_cosines(self) -> None:
        task, data = build("noisy_pairs")
        q = task.quantities(data.fetch("train", torch.arange(8)))
        cosines = [normalize(a) @ normalize(b).T for a, b in ((q["projections_1"], q["projections_2"]), tuple(q["mix_target"].values()))]
        torch.testing.assert_close(normalize(q["embeddings_1"]) @ normalize(q["embeddings_2"]).T, sum(cosines) / 2)

    def test_one_head(self) -> None:
        task, data = build("noisy_pairs", options={"heads": 1})
        q = task.quantities(data.fetch("train", torch.arange(8)))
        assert "mix_target" not in q and q["embeddings_1"].shape == (8, 5) and q["training_losses"].shape == (1, 20)

    def test_a_second_encoder_for_views_of_another_shape(self) -> None:
        task, data = build("noisy_pairs", options={"second_encoder": MLP((4,), 1, hidden=(7,))})
        batch = data.fetch("train", torch.arange(8))
        q = task.quantities({**batch, "inputs_2": batch["inputs_2"][:, :4]})
        assert q["features_2"].shape == (8, 7) and q["projections_2"].shape == (8, 5)
        assert set(task.predict({"inputs": batch["inputs"], "inputs_2": batch["inputs_2"][:, :4]})) == {"embedding_1", "embedding_2"}

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="heads must be 1 or 2, but got 3"):
            build("noisy_pairs", options={"heads": 3})
        with pytest.raises(ValueError, match="projection_dim must be >= 1"):
            build("noisy_pairs", options={"projection_dim": 0})
        task, _ = build("noisy_pairs")
        with pytest.raises(ValueError, match="needs a second view, inputs_2"):
            trainer().fit(task, datamodule=TinyData("classification"))
        task, data = with_division()
        with pytest.raises(ValueError, match="training_losses need the training data"):
            trainer().fit(task, train_dataloaders=data.train_dataloader())


class TestTrainingLosses:
    def test_are_those_of_each_head_on_the_epochs_batches(self) -> None:
        task, data = with_division()
        task.objective = Objective(
            bind(SymmetricInfoNCELoss(), task.offered, name="loss", task="noisy_pairs"), reweighting=task.objective.reweighting
        )
        seen = []
        fit = trainer(max_epochs=1)
        step = task.training_step
        task.training_step = lambda batch, batch_idx: seen.append(batch) or step(batch, batch_idx)  # type: ignore[method-assign]
        before = {k: v.clone() for k, v in task.state_dict().items()}
        fit.fit(task, datamodule=data)
        other, _ = build("noisy_pairs", dropout=0.3)
        other.load_state_dict(before)
        other.eval()
        for batch in seen:
            q = other.quantities(batch)
            for head, (a, b) in enumerate(((q["projections_1"], q["projections_2"]), tuple(q["mix_target"].values()))):
                torch.testing.assert_close(task.training_losses[head, batch["index"]], SymmetricInfoNCELoss(reduction="none")(a, b))

    def test_are_not_measured_for_nobody(self) -> None:
        task, data = build("noisy_pairs")
        trainer().fit(task, datamodule=data)
        assert not task.training_losses.any()

    def test_any_checkpoint_continues_the_run_exactly(self, tmp_path: Path) -> None:
        """With dropout, and a division of the training set at every epoch."""
        whole = Recorder()
        saver = SaveEverywhere(tmp_path, whole)
        task, data = with_division()
        fit = trainer(whole, max_epochs=3, callbacks=[saver])
        fit.fit(task, datamodule=data)
        expected = state(task, fit)
        for checkpoint in [path for number, path in enumerate(saver.saved) if number % 2 and "end" not in path.name]:
            part = Recorder()
            resumed, again = with_division(seed=8)
            fit = trainer(part, max_epochs=3)
            fit.fit(resumed, datamodule=again, ckpt_path=checkpoint, weights_only=True)
            assert all(torch.equal(a, b) for a, b in zip(state(resumed, fit), expected, strict=True)), checkpoint.name
            assert part.rows == whole.rows[saver.saved[checkpoint] :], checkpoint.name


def test_division_finds_the_mismatched_pairs() -> None:
    """Half of the pairs mismatched: after some epochs what it does not believe is wrong, and most of what it believes is right."""
    sets = [PairedViews(size=1500, identities=150, mismatched=share, batch_size=64) for share in (0.0, 0.5)]
    for data in sets:
        data.setup()
    clean, noisy = (data.splits["train"]["inputs_2"] for data in sets)
    right = (clean == noisy).all(1)
    assert float(right.float().mean()) == pytest.approx(0.5, abs=0.01)
    torch.manual_seed(0)
    task = NoisyPairsTask(
        MLP((32,), 1, hidden=(64,)), feature_dim=64, num_samples=len(right), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3)
    )
    division = bind(ConfidentConsensusDivision(), task.offered, name="reweighting", task="noisy_pairs")
    task.objective = Objective(bind(TripletAlignmentLoss(), task.offered, name="loss", task="noisy_pairs"), reweighting=division)
    trainer(max_epochs=8, limit_val_batches=0).fit(task, datamodule=sets[1])
    believed = division.module._weights == 1  # type: ignore[union-attr]
    assert float(right[believed].float().mean()) > 0.6
    assert float(right[~believed].float().mean()) < 0.1
