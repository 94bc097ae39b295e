import math
from typing import Any

import pytest
import torch
from tiny_tasks import Recorder, TinyData, build, trainer
from torch import nn
from torch.nn.functional import cross_entropy

import components.tasks.language_modelling as family
from components.losses import LinearCrossEntropyLoss, NextTokenCrossEntropyLoss
from components.tasks import LanguageModellingTask


def expected_nll(task: Any, split: dict[str, torch.Tensor]) -> float:
    task.eval()
    with torch.no_grad():
        return float(cross_entropy(task.run_model(split["inputs"]).output, split["target"]))


LOSSES = {
    "next_token": lambda: NextTokenCrossEntropyLoss(),
    "smoothed": lambda: NextTokenCrossEntropyLoss(label_smoothing=0.9, z_loss=0.1),
    "linear_cross_entropy": lambda: LinearCrossEntropyLoss(),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_perplexity_and_bits_are_those_of_the_likelihood_whatever_the_loss(loss: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(family, "CHUNK_ELEMENTS", 50)  # several chunks, the last one smaller
    task, data = build("language_modelling", loss=LOSSES[loss](), bytes_per_token=2.0)
    data.splits["val"]["target"][2, 3:] = -100
    (result,) = trainer().validate(task, datamodule=data, verbose=False)
    nll = expected_nll(task, data.splits["val"])
    assert result["val/perplexity"] == pytest.approx(math.exp(nll), rel=1e-5)
    assert result["val/bits_per_byte"] == pytest.approx(nll / math.log(2) / 2, rel=1e-5)
    assert (abs(result["val/loss"] - nll) > 0.01) == (loss == "smoothed")


def test_logits_are_never_made_for_a_loss_on_hidden_states():
    task, data = build("language_modelling", loss=LinearCrossEntropyLoss())
    assert task.without_logits
    made = []
    head = task.model.head
    task.model.head = lambda hidden: made.append(hidden.shape) or head(hidden)  # type: ignore[method-assign,assignment,operator]
    fit = trainer(max_epochs=2)
    fit.fit(task, datamodule=data)
    fit.test(task, datamodule=data, verbose=False)
    assert made == []
    quantities = task.quantities(next(iter(data.loader("train", 4))))
    torch.testing.assert_close(quantities["logits"], task.model(quantities["inputs"]).output)
    assert made


def test_both_losses_give_the_same_training():
    ends = []
    for loss in (NextTokenCrossEntropyLoss(), LinearCrossEntropyLoss()):
        task, data = build("language_modelling", loss=loss)
        trainer(max_epochs=2).fit(task, datamodule=data)
        ends.append(task.model.state_dict())
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value)


def test_a_model_that_gives_logits_alone_will_do():
    class Bigram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(11, 11)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.table(inputs).transpose(1, 2)

    task, data = build("language_modelling")
    loss = task.objective
    task = LanguageModellingTask(Bigram(), loss, optimizer=torch.optim.Adam)
    assert not {"hidden_states", "output_weight"} & task.offered
    recorder = Recorder()
    trainer(recorder).fit(task, datamodule=TinyData("language_modelling"))
    logged = {key: row[key] for _, row in recorder.rows for key in row}
    assert logged["val/perplexity"] == pytest.approx(math.exp(expected_nll(task, data.splits["val"])), rel=1e-5)


def test_predicts_the_next_token_and_how_likely_the_given_ones_were():
    task, data = build("language_modelling")
    task.eval()
    split = data.splits["val"]
    split["target"][0, 1:] = -100
    with torch.no_grad():
        columns = task.predict({**split, "index": torch.arange(7)})
        logits = task.model(split["inputs"]).output
    assert torch.equal(columns["next_token"], logits[:, :, -1].argmax(1))
    torch.testing.assert_close(columns["nll"][0], -logits.log_softmax(1)[0, split["target"][0, 0], 0])
    torch.testing.assert_close(columns["nll"][1], cross_entropy(logits[1:2], split["target"][1:2]))


def test_errors():
    with pytest.raises(ValueError, match="bytes_per_token must be > 0, but got 0"):
        build("language_modelling", bytes_per_token=0)
