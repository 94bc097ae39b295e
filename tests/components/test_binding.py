import os
import re
import socket

import pytest
import torch
from torch import Tensor, nn

from components.binding import BindingError, bind, gather_over_ranks, requirements
from components.quantities import Quantities


class Margin(nn.Module):
    """Asks for one quantity, and for another where there is one."""

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        return logits.sum() if features is None else logits.sum() + 100 * features.sum()


class Preference(nn.Module):
    def forward(self, policy_chosen_logps: Tensor) -> Tensor:
        return policy_chosen_logps.sum()


LOGITS, FEATURES = torch.tensor([1.0, 2.0]), torch.tensor([1.0])


class TestRequirements:
    def test_required_and_optional_parameters(self):
        assert requirements(Margin().forward) == (["logits"], ["features"])
        assert requirements(nn.CrossEntropyLoss().forward) == (["input", "target"], [])

    def test_catch_all_parameters_ask_for_nothing(self):
        def function(a: int, *rest: int, b: int, c: int = 0, **more: int) -> None: ...

        assert requirements(function) == (["a", "b"], ["c"])


class TestBind:
    def test_feeds_what_the_parameters_are_named(self):
        bound = bind(Margin(), ["logits", "target"], name="loss=margin", task="classification")
        assert bound(Quantities(logits=LOGITS, target=None)).item() == 3.0

    def test_an_optional_parameter_is_fed_where_it_is_offered(self):
        quantities = Quantities(logits=LOGITS, features=FEATURES)
        assert bind(Margin(), ["logits"], name="loss", task="t")(quantities).item() == 3.0
        assert bind(Margin(), ["logits", "features"], name="loss", task="t")(quantities).item() == 103.0

    def test_only_what_is_asked_for_is_looked_up(self):
        bound = bind(Margin(), ["logits", "never"], name="loss", task="t")
        assert bound({"logits": LOGITS}).item() == 3.0

    def test_inputs_says_which_quantity_feeds_which_parameter(self):
        bound = bind(nn.CrossEntropyLoss(), ["logits", "target"], name="loss=ce", task="classification", inputs={"input": "logits", "target": "target"})
        logits, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
        assert torch.equal(bound({"logits": logits, "target": target}), nn.functional.cross_entropy(logits, target))
        assert bound.arguments == {"input": "logits", "target": "target"}

    def test_inputs_may_feed_an_optional_parameter(self):
        bound = bind(Margin(), ["logits", "embeddings"], name="loss", task="t", inputs={"features": "embeddings"})
        assert bound({"logits": LOGITS, "embeddings": FEATURES}).item() == 103.0

    def test_a_metrics_update_is_what_asks(self):
        class Metric:
            def update(self, prediction: Tensor, target: Tensor) -> None: ...

            def forward(self, *args: Tensor) -> None: ...

        bound = bind(Metric(), ["prediction", "target"], name="metric", task="t", method="update")
        assert set(bound.arguments) == {"prediction", "target"}

    def test_a_plain_function_is_a_component_too(self):
        bound = bind(lambda logits: 2 * logits, ["logits"], name="loss", task="t")
        assert bound({"logits": LOGITS}).tolist() == [2.0, 4.0]

    def test_the_components_parameters_and_state_are_the_bounds(self):
        component = nn.PReLU()
        bound = bind(component, ["logits"], name="loss", task="t", inputs={"input": "logits"})
        assert next(bound.parameters()) is component.weight
        assert list(bound.state_dict()) == ["module.weight"]
        assert "input=logits" in repr(bound)


class TestErrors:
    def test_what_is_missing_and_who_offers_it(self):
        with pytest.raises(BindingError) as error:
            bind(
                Preference(),
                ["target", "inputs", "logits"],
                name="loss=dpo",
                task="classification",
                offered_elsewhere={"regression": ["prediction"], "preference": ["policy_chosen_logps"], "alignment": ["policy_chosen_logps", "step"]},
            )
        assert str(error.value) == (
            "loss=dpo needs policy_chosen_logps; task=classification offers inputs, logits, target; tasks that offer it: alignment, preference"
        )

    def test_no_task_offers_it(self):
        with pytest.raises(BindingError, match="loss=dpo needs policy_chosen_logps; task=t offers logits; no task offers it"):
            bind(Preference(), ["logits"], name="loss=dpo", task="t", offered_elsewhere={"regression": ["prediction"]})

    def test_a_task_must_offer_all_that_is_missing(self):
        def pair(features_1: Tensor, features_2: Tensor) -> None: ...

        with pytest.raises(BindingError, match=r"needs features_1, features_2; .* tasks that offer it: self_supervised$"):
            bind(pair, ["logits"], name="loss", task="t", offered_elsewhere={"half": ["features_1"], "self_supervised": ["features_1", "features_2"]})

    def test_inputs_names_an_unknown_parameter(self):
        with pytest.raises(BindingError, match="loss=ce: inputs maps 'inptu', but it takes input, target; did you mean 'input'"):
            bind(nn.CrossEntropyLoss(), ["logits", "target"], name="loss=ce", task="t", inputs={"inptu": "logits"})

    def test_inputs_names_an_unknown_quantity(self):
        expected = re.escape("loss=ce: inputs feeds 'input' from 'logit', but task=t offers logits, target; did you mean 'logits'?")
        with pytest.raises(BindingError, match=expected):
            bind(nn.CrossEntropyLoss(), ["logits", "target"], name="loss=ce", task="t", inputs={"input": "logit"})

    def test_is_a_value_error(self):
        assert issubclass(BindingError, ValueError)


# -- pairwise losses over ranks -----------------------------------------------------------------------------------------
class PairDistance(nn.Module):
    """A loss over all pairs: classes apart, one class together. Its scale is learned, as a temperature is."""

    pairwise = True

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        squared = (embeddings.unsqueeze(0) - embeddings.unsqueeze(1)).square().sum(-1)
        same = target.unsqueeze(0) == target.unsqueeze(1)
        return torch.where(same, squared, torch.exp(-self.scale * squared)).mean()


class Embedder(nn.Module):
    """As a task under DDP: model and objective inside the wrapped forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
        self.loss = bind(PairDistance(), ["embeddings", "target"], name="loss", task="t")

    def forward(self, inputs: Tensor, target: Tensor) -> Tensor:
        return self.loss(Quantities(embeddings=self.model(inputs), target=target))


def whole_batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def check_rank(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        inputs, target = whole_batch()
        wrapped = nn.parallel.DistributedDataParallel(Embedder())
        loss = wrapped(inputs[rank::2], target[rank::2])
        loss.backward()
        alone = Embedder()
        expected = alone.loss.module(alone.model(inputs), target)  # the bare loss gathers nothing
        expected.backward()
        torch.testing.assert_close(loss, expected)
        for (name, ours), theirs in zip(wrapped.module.named_parameters(), alone.parameters(), strict=True):
            assert bool((theirs.grad != 0).any()), name
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
        gathered = gather_over_ranks({"x": torch.full((2, 1), float(rank)), "flags": torch.tensor([rank == 0]), "step": torch.tensor(rank), "name": "kept"})
        assert gathered["x"].tolist() == [[0.0], [0.0], [1.0], [1.0]]
        assert gathered["flags"].tolist() == [True, False]
        assert gathered["step"].item() == rank
        assert gathered["name"] == "kept"
        with torch.no_grad():  # in validation ranks may hold any number of rows
            uneven = gather_over_ranks({"x": torch.arange(3.0)[: 3 * rank], "flags": torch.tensor([True] * rank, dtype=torch.bool)})
        assert uneven["x"].tolist() == [0.0, 1.0, 2.0]
        assert uneven["flags"].tolist() == [True]
    finally:
        torch.distributed.destroy_process_group()
    # Every check has passed (a failed one has raised). At the interpreter's own exit torch 2.13 now and then aborts after a gloo
    # group ("terminate called without an active exception", about 1 process pair in 20 here): that is not what is tried.
    os._exit(0)


class TestGathering:
    def test_one_process_gathers_nothing(self):
        values = {"embeddings": torch.zeros(2, 3)}
        assert gather_over_ranks(values) is values

    def test_two_ranks_have_the_loss_and_the_gradient_of_one_process(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(check_rank, args=(port,), nprocs=2)
