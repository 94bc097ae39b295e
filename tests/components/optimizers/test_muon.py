import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from components.optimizers import MuonWithAuxAdamW, muon_groups, parameter_groups
from components.testing.optimizers import MakeOptimizer, OptimizerContract, assert_equal_trees, assert_same, through_a_file


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 2))


def train(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        inputs = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(step))
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(inputs).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def values(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


class TestOriginalAdjustment(OptimizerContract):
    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return partial(MuonWithAuxAdamW, lr=0.02, adjust_lr_fn="original", nesterov=False, weight_decay=0.0)


class TestUpdate:
    def test_is_torchs_muon_and_adamw_bit_for_bit(self):
        ours, theirs = network(), network()
        train(ours, [MuonWithAuxAdamW(ours.parameters(), lr=0.01, weight_decay=0.05, momentum=0.9, adamw_lr=0.003)], 5)
        matrices = [p for p in theirs.parameters() if p.ndim == 2]
        others = [p for p in theirs.parameters() if p.ndim != 2]
        muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.05, momentum=0.9, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW(others, lr=0.003, weight_decay=0.05, betas=(0.9, 0.95), eps=1e-8)
        train(theirs, [muon, adamw], 5)
        assert_same(values(ours), values(theirs))

    def test_a_matrix_moves_along_an_orthogonal_matrix(self):
        # five iterations bring the singular values near 1 (to within about 0.5 … 1.5), whatever the gradient's were
        theta = nn.Parameter(torch.zeros(6, 4))
        theta.grad = torch.linalg.qr(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))[0] @ torch.diag(torch.tensor([100.0, 10.0, 1.0, 0.5]))
        MuonWithAuxAdamW([theta], lr=1.0, weight_decay=0.0).step()
        singular = torch.linalg.svdvals(theta.detach()) / (0.2 * 6**0.5)
        assert bool(((singular > 0.3) & (singular < 1.6)).all())

    def test_kernels_and_vectors_go_to_adamw(self):
        model = network()
        optimizer = MuonWithAuxAdamW(model.parameters())
        muon, adamw = optimizer.param_groups
        assert [p.ndim for p in muon["params"]] == [2, 2, 2] and sorted(p.ndim for p in adamw["params"]) == [1, 1, 1, 1, 4]

    def test_only_vectors_or_only_matrices(self):
        for shape in [(3,), (3, 2)]:
            theta = nn.Parameter(torch.ones(shape))
            optimizer = MuonWithAuxAdamW([theta], lr=0.1, weight_decay=0.0)
            theta.grad = torch.ones(shape)
            optimizer.step()
            assert len(optimizer.param_groups) == 1 and bool((theta < 1).all())


class TestGroups:
    def test_a_schedule_scales_both_parts(self):
        model = network()
        optimizer = MuonWithAuxAdamW(model.parameters(), lr=0.01, adamw_lr=0.002)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        train(model, [optimizer], 1)
        scheduler.step()
        assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.001]

    def test_given_groups_keep_their_options_in_both_parts(self):
        model = network()
        optimizer = MuonWithAuxAdamW([{"params": model[2].parameters(), "lr": 0.5, "weight_decay": 0.0}, {"params": model[4].parameters()}], lr=0.1)
        assert [(g["lr"], g["weight_decay"], g["use_muon"]) for g in optimizer.param_groups] == [
            (0.5, 0.0, True),
            (0.5, 0.0, False),
            (0.1, 0.1, True),
            (0.1, 0.1, False),
        ]

    def test_a_group_added_later_is_trained(self):
        ours = network()
        optimizer = MuonWithAuxAdamW(ours[2].parameters(), lr=0.01)
        optimizer.add_param_group({"params": ours[4].weight})
        before = values(ours)
        train(ours, [optimizer], 1)
        moved = [not torch.equal(a, b) for a, b in zip(before, values(ours), strict=True)]
        assert moved == [False, False, True, True, True, False, False, False]

    def test_decay_only_matrices(self):
        model = network()
        optimizer = MuonWithAuxAdamW(parameter_groups(model, 0.3), weight_decay=0.3)
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert all(decay[id(p)] == (0.3 if p.ndim >= 2 else 0.0) for p in model.parameters())


class TestHiddenMatrices:
    def test_embedding_and_output_layer_are_adamws(self):
        model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 9))
        model[1].weight.requires_grad_(False)
        hidden, rest = muon_groups(model)
        assert [id(p) for p in hidden["params"]] == [id(model[2].weight)]
        assert {id(p) for p in rest["params"]} == {id(p) for p in model.parameters()} - {id(model[1].weight), id(model[2].weight)}
        assert [g["use_muon"] for g in MuonWithAuxAdamW(muon_groups(model)).param_groups] == [True, False]

    def test_a_losss_own_matrix_is_adamws(self):
        model, centres = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), nn.Parameter(torch.zeros(3, 6))
        hidden, rest = muon_groups(model, [*model.parameters(), centres])
        assert [id(p) for p in hidden["params"]] == [id(model[0].weight)] and id(centres) in {id(p) for p in rest["params"]}

    def test_with_decay_only_matrices(self):
        model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
        groups = parameter_groups(muon_groups(model), 0.3)
        assert [(len(g["params"]), g["use_muon"], g["weight_decay"]) for g in groups] == [(1, True, 0.3), (1, False, 0.3), (2, False, 0.0)]


class TestCopies:
    def test_resumes_bit_for_bit(self):
        ours = network()
        optimizer = MuonWithAuxAdamW(muon_groups(ours))
        train(ours, [optimizer], 3)
        stored = through_a_file({"model": ours.state_dict(), "optimizer": optimizer.state_dict()})
        again = network(seed=1)
        again.load_state_dict(stored["model"])
        resumed = MuonWithAuxAdamW(muon_groups(again))
        resumed.load_state_dict(stored["optimizer"])
        assert_equal_trees(resumed.state_dict(), optimizer.state_dict())
        train(ours, [optimizer], 3, start=3)
        train(again, [resumed], 3, start=3)
        assert_same(values(ours), values(again))

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"])
    def test_a_copy_trains_on(self, duplicate):
        ours = network()
        optimizer = MuonWithAuxAdamW(ours.parameters())
        train(ours, [optimizer], 2)
        again, copied = duplicate((ours, optimizer))
        train(ours, [optimizer], 2, start=2)
        train(again, [copied], 2, start=2)
        assert_same(values(ours), values(again))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr \(the learning rate\) must be >= 0, but got -1.0"),
        ({"adamw_lr": -1.0}, "adamw_lr must be >= 0"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"ns_steps": 0}, "ns_steps must be in"),
        ({"adjust_lr_fn": "orginal"}, "adjust_lr_fn must be one of match_rms_adamw, original, but got 'orginal'; did you mean 'original'"),
        ({"adamw_betas": (0.9, 1.0)}, "adamw_betas must be two numbers in"),
        ({"adamw_eps": -1.0}, "adamw_eps must be >= 0"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        MuonWithAuxAdamW([nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))], **options)


def test_refuses_to_orthogonalise_a_kernel():
    with pytest.raises(ValueError, match=r"use_muon takes matrices, but a parameter has the shape \(2, 1, 3, 3\)"):
        MuonWithAuxAdamW([{"params": [nn.Parameter(torch.zeros(2, 1, 3, 3))], "use_muon": True}])
