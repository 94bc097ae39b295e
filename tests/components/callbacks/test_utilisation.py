import lightning
import pytest
import torch
from torch.nn.functional import normalize

from components.binding import bind
from components.callbacks.utilisation import Utilisation
from components.data import Identities
from components.losses import MultiSimilarityLoss
from components.metrics import utilisation
from components.models import MLP
from components.objective import Objective
from components.tasks import EmbeddingTask


@pytest.fixture
def task() -> EmbeddingTask:
    torch.manual_seed(0)
    objective = Objective(bind(MultiSimilarityLoss(), {"embeddings", "target"}, name="loss", task="embedding"))
    return EmbeddingTask(
        MLP(input_shape=(8,), num_outputs=5, hidden=[8]), objective, embedding_dim=5, optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1)
    )


@pytest.fixture
def data() -> Identities:
    return Identities(size=200, classes=8, unseen=4, dimensions=8, batch_size=16, eval_batch_size=30)


def trainer(*callbacks: lightning.Callback) -> lightning.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler"), False)
    return lightning.Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, callbacks=list(callbacks), **quiet)


@pytest.mark.filterwarnings("ignore")
def test_logs_how_near_training_is(task, data) -> None:
    made = trainer(Utilisation())
    made.fit(task, datamodule=data)
    assert 0 < float(made.callback_metrics["val/utilisation"]) < 4
    result = made.test(task, datamodule=data, verbose=False)[0]
    with torch.no_grad():
        train, test = (normalize(task.run_model(data.splits[name]["inputs"]).output, dim=1) for name in ("train", "test"))
    assert result["test/utilisation"] == pytest.approx(utilisation(test, train).item(), rel=1e-5)


def test_part_of_training(task, data) -> None:
    data.setup()
    with torch.no_grad():
        every = normalize(task.run_model(data.splits["train"]["inputs"]).output, dim=1)
    assert torch.equal(Utilisation(max_samples=3).of_training(data, task), every[[0, (len(every) - 1) // 2, len(every) - 1]])
    torch.testing.assert_close(Utilisation(max_samples=None).of_training(data, task), every)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="max_samples must be >= 1"):
        Utilisation(0)
