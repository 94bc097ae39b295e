from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import one_hot

from components.data import BagOrder, Bags, Diabetes, DigitsAttributes, Iris


def made(**options) -> Bags:
    data = Bags(Iris(), **{"bag_size": 4, "batch_size": 8, **options})
    data.setup()
    return data


class TestBags:
    def test_say_the_share_of_each_class_of_their_members(self) -> None:
        train = made().splits["train"]
        for number in train["bag"].unique():
            members = train["bag"] == number
            share = one_hot(train["target"][members], 3).float().mean(0)
            torch.testing.assert_close(train["proportions"][members], share.expand(int(members.sum()), 3))
            assert (train["bag_size"][members] == members.sum()).all()

    def test_are_of_one_size_but_for_the_last(self) -> None:
        data = made(bag_size=8, batch_size=16)
        sizes = torch.bincount(data.splits["train"]["bag"])
        count = len(data.splits["train"]["target"])
        assert sizes.tolist() == [8] * (count // 8) + ([count % 8] if count % 8 else [])

    def test_stay_the_same_from_epoch_to_epoch_and_seed_to_seed(self) -> None:
        first, other_seed, resplit = made(), made(seed=3), made(split_seed=1)
        assert torch.equal(first.splits["train"]["bag"], other_seed.splits["train"]["bag"])
        assert not torch.equal(first.splits["train"]["bag"], resplit.splits["train"]["bag"])

    def test_validation_and_test_have_none(self) -> None:
        data = made()
        assert all(set(data.splits[part]) == {"inputs", "target"} for part in ("val", "test"))

    def test_follow_what_is_done_to_the_training_split(self) -> None:
        clean, data = made(), made(label_noise=0.5, fraction=0.5)
        train = data.splits["train"]
        assert len(train["target"]) < 0.6 * len(clean.splits["train"]["target"])
        assert train["proportions"].mean(0).tolist() == pytest.approx((torch.bincount(train["target"]) / len(train["target"])).tolist())

    def test_training_batches_are_of_whole_bags_in_a_new_order_each_epoch(self) -> None:
        data = made(bag_size=4, batch_size=12)
        sizes = torch.bincount(data.splits["train"]["bag"])
        orders = []
        for epoch in (0, 1, 0):
            data.position = lambda epoch=epoch: (epoch, 0)  # type: ignore[method-assign]
            batches = list(data.train_dataloader())
            for batch in batches:
                assert (torch.bincount(batch["bag"], minlength=len(sizes))[batch["bag"].unique()] == sizes[batch["bag"].unique()]).all()
            orders.append(torch.cat([batch["index"] for batch in batches]))
            assert orders[-1].sort().values.tolist() == list(range(len(orders[-1])))
        assert torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[1])

    def test_ranks_share_a_step_by_bags(self) -> None:
        whole = list(made(batch_size=8).train_dataloader())
        ranks = []
        for rank in range(2):
            data = made(batch_size=4)
            current = SimpleNamespace(current=SimpleNamespace(ready=0))
            loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=current))
            data.trainer = SimpleNamespace(global_rank=rank, world_size=2, current_epoch=0, fit_loop=loop)  # type: ignore[assignment]
            ranks.append(list(data.train_dataloader()))
        for one, left, right in zip(whole, *ranks, strict=True):
            both = torch.cat([left["index"], right["index"]])
            assert both[: len(one["index"])].tolist() == one["index"].tolist()

    def test_start_in_the_middle_is_the_tail_of_the_epoch(self) -> None:
        order = BagOrder(20, 4, shuffle=True, seed=1, bag=torch.arange(20) // 2)
        whole, tail = list(order.batches(3)), list(order.batches(3, start=2))
        assert all(torch.equal(a, b) for a, b in zip(whole[2:], tail, strict=True))

    def test_bad_options(self) -> None:
        with pytest.raises(ValueError, match="batch_size must be a multiple of bag_size=3"):
            made(bag_size=3)
        with pytest.raises(ValueError, match="bag_size must be >= 1"):
            made(bag_size=0)
        for source in (Diabetes(), DigitsAttributes()):
            with pytest.raises(ValueError, match="source must have one class a sample"):
                Bags(source).setup()
        with pytest.raises(ValueError, match="source must be a data module"):
            Bags("digits")  # type: ignore[arg-type]

    def test_new_inputs_are_read_as_the_source_reads_them(self, tmp_path) -> None:
        data = made()
        path = tmp_path / "flowers.csv"
        columns = Iris().read().inputs.columns
        path.write_text(",".join(columns) + "\n" + ",".join(["5.0"] * len(columns)) + "\n")
        assert data.read_inputs(path)["inputs"].shape == (1, data.facts()["num_features"])
