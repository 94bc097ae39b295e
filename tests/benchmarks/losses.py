"""What forward and backward of each loss cost beside its family's plain one: ``python losses.py [--json] [--rounds N] [--samples N] [OPTION …]``.

All options of ``conf/loss`` with their defaults, on made-up quantities: 1,024 samples of 1,000 classes, of 128 features, of two real numbers, and so
on; sizes of their own where a loss is of pictures or compares more than pairs. With ``--samples 262144`` the losses of real numbers are no longer a
matter of how many operations there are but of how often each reads and writes memory. Loss and baseline take turns in a process of their own, so that
whatever else the machine does meets both, and so that what the process's memory rises by is theirs.

ratio   least time / least time of the baseline in the same turns; above 3 the last column says why
time    of the loss, the least: what else the machine does only ever adds to it
memory  by which the loss raised the process's peak, inputs not counted / by which the baseline did after the same preparations
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from components.binding import requirements
from components.testing.losses import DATA, FIXED_SIZE, TARGETS, example_facts, example_quantities

CONF = Path(__file__).parents[2] / "conf" / "loss"
ROUNDS, WARM_UP = 15, 2
LIMIT = 3.0
PATIENCE = 60.0  # seconds for one loss


@dataclass(frozen=True)
class Size:
    """Of the quantities that a loss is measured on."""

    batch: int = 1024
    classes: int = 1000
    spatial: tuple[int, ...] = ()
    features: int = 128


NATURAL: dict[str, Size] = {
    **dict.fromkeys(("dice", "dsc", "generalized_dice", "jaccard", "lovasz_softmax", "tversky", "focal_tversky", "boundary"), Size(8, 4, (128, 128))),
    **dict.fromkeys(("pulaski", "elbo_segmentation"), Size(8, 2, (64, 64))),
    "mip": Size(2, 2, (48, 48, 48)),
    "betti_matching": Size(4, 2, (48, 48)),
    **dict.fromkeys(("amarx", "distribution_bound"), Size(100, 100)),
    **dict.fromkeys(("ideal_binary_mask", "spectrogram_mse"), Size(8, 2, (128, 128))),
    **dict.fromkeys(("welfare_rank", "tri_bce", "profit_regret", "rejection", "ensloss"), Size(classes=10)),
    "easyllp": Size(classes=10),
    "proportion_matching": Size(classes=10),
    "pfid": Size(256, 100),
    "sparse_transport": Size(128),
}
"""Sizes of losses that are not for 1,024 samples of 1,000 classes."""


BASELINES = {
    frozenset({"logits", "target"}): "cross_entropy",
    frozenset({"logits", "target_multi_hot"}): "bce",
    frozenset({"prediction", "target"}): "mse",
    frozenset({"embeddings", "target"}): "supervised_contrastive",
    frozenset({"projections_1", "projections_2"}): "info_nce",
    frozenset({"positive_scores", "negative_scores"}): "bpr",
    frozenset({"log_density", "noise_log_density"}): "nce",
    frozenset({"residual"}): "pinn",
    frozenset({"hidden_states", "output_weight", "target"}): "linear_cross_entropy",
}
"""The plain loss of those that ask for (at least) these quantities; the first that fits counts."""
NAMED_BASELINES: dict[str, str] = {}
"""… and of those where another one is the family's."""
FUSED = "several passes over samples x classes, where torch's kernel makes one"
SMALL = "some ten to thirty small operations, whose number is what costs at this size"
PAIRS = "several passes over all pairs of samples, where the baseline makes few"
REGIONS = "softmax, one-hot and three sums over all pixels, where torch's kernel makes one pass"
WHY: dict[str, str] = {
    **dict.fromkeys(("aldr_kl", "kd", "ldr_kl", "multiclass_hinge", "poly1", "spherical_softmax", "squentropy", "stablemax"), FUSED),
    **dict.fromkeys(("taylor_softmax", "z_loss", "decoupled_softmax", "hinge", "kl_divergence", "list_net", "multilabel_softmax"), FUSED),
    **dict.fromkeys(("rejection", "tri_bce"), SMALL),
    **dict.fromkeys(("contrastive", "lifted_structure", "multi_similarity"), PAIRS),
    **dict.fromkeys(("dice", "dsc", "focal_tversky", "generalized_dice", "jaccard", "tversky"), REGIONS),
    **dict.fromkeys(("sparsemax", "multilabel_sparsemax"), "sorts the scores of each sample"),
    **dict.fromkeys(("icnn", "unpg"), "sorts the distances of all pairs"),
    "betti_matching": "persistence barcodes of three fields for each class and picture, on the CPU",
    "boundary": "a distance transform of each mask, by SciPy",
    "cs_ib": "kernels of all pairs of inputs, features, targets and predictions, N² memory",
    "ensloss": "draws and sorts a derivative for each sample",
    "legendre_tron": "a flow with parameters of its own for each class, and its inverse's derivative",
    "lovasz_softmax": "sorts the errors of all pixels for each class",
    "mann_whitney": "compares each positive with the negatives of all queries, N²M memory",
    "metrix": "its base loss, and the same on all mixed pairs",
    "mip": "softmax over the volume, and its projections along each axis",
    "pfid": "compares all pairs of predictions, N²C",
    **dict.fromkeys(("smooth_adv_comp_sum", "trades"), "ten steps of ascent, each forward and backward through the model"),
    "soft_top_k": "forty halvings of an interval for each sample's threshold",
    "sparse_transport": "solves a transport problem between the two batches",
    "triplet": "each pair of a class looks for its semi-hard negative among all samples",
    "welfare_rank": "compares all pairs of ads of an auction",
}
"""Why a ratio is above the limit; beside the squared error it is :data:`SMALL` where nothing else is."""


class Timed:
    """A loss with inputs of its own: one call is forward and backward."""

    def __init__(self, option: str, size: Size, named: Mapping[str, Any]) -> None:
        config = OmegaConf.load(CONF / f"{option}.yaml")
        facts = example_facts(size.batch) | {"num_classes": size.classes, "num_outputs": size.classes, "num_samples": 10 * size.batch}
        facts |= {"class_counts": [10] * size.classes, "feature_dim": size.features, "embedding_dim": size.features}
        taken = inspect.signature(get_class(config._target_)).parameters
        self.loss: nn.Module = instantiate(config, **{k: v for k, v in facts.items() if k in taken and k not in config}, _convert_="all").float()
        names = requirements(self.loss.forward)[0]
        self.inputs = {name: copy.deepcopy(named[name]) for name in names}
        self.leaves = [v for k, v in self.inputs.items() if isinstance(v, Tensor) and v.is_floating_point() and not k.startswith((*DATA, *FIXED_SIZE))]
        for leaf in self.leaves:
            leaf.requires_grad_()

    def __call__(self) -> float:
        began = time.perf_counter()
        self.loss(**self.inputs).backward()
        took = time.perf_counter() - began
        for leaf in [*self.leaves, *self.loss.parameters()]:
            leaf.grad = None
        return took


def needs(option: str) -> list[str]:
    names = requirements(get_class(OmegaConf.load(CONF / f"{option}.yaml")._target_).forward)[0]
    return [name for name in names if name != "self"]


def baseline_of(option: str) -> str | None:
    if option in NAMED_BASELINES:
        return NAMED_BASELINES[option]
    asked = set(needs(option))
    return next((name for quantities, name in BASELINES.items() if quantities <= asked), None)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measured(option: str, rounds: int, samples: int) -> dict[str, Any]:
    """In a process of its own: the figures of one loss."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    baseline = baseline_of(option)
    size = NATURAL.get(option, Size(samples, TARGETS) if baseline == "mse" else Size())
    names = {*needs(option), *(needs(baseline) if baseline else ())}
    named = example_quantities(names, batch=size.batch, classes=size.classes, spatial=size.spatial, features=size.features, dtype=torch.float32)
    both = [Timed(name, size, named) for name in (option, baseline) if name]
    risen = []
    for timed in reversed(both):  # the baseline first: what it needs the loss may use again
        before = peak()
        timed()
        risen.append(peak() - before)
    times: list[list[float]] = [[] for _ in both]
    for number in range(WARM_UP + rounds):
        for timed, found in zip(both, times, strict=True):
            took = timed()
            if number >= WARM_UP:
                found.append(took)
    least = [min(found) for found in times]
    return {
        "option": option,
        "baseline": baseline,
        "seconds": least[0],
        "ratio": least[0] / least[1] if baseline else None,
        "bytes": sum(risen),
        "bytes_baseline": risen[0] if baseline else None,
        "size": [size.batch, size.classes, *size.spatial],
    }


def _in_child(option: str, rounds: int, samples: int, results: Any) -> None:
    try:
        results.put(measured(option, rounds, samples))
    except Exception as error:  # noqa: BLE001  one loss that fails is a row of the table
        results.put({"option": option, "error": f"{type(error).__name__}: {error}"})


def measure_all(options: list[str], rounds: int, samples: int) -> Iterator[dict[str, Any]]:
    context = multiprocessing.get_context("fork")
    for option in options:
        results = context.SimpleQueue()
        child = context.Process(target=_in_child, args=(option, rounds, samples, results))
        child.start()
        child.join(PATIENCE)
        child.kill()
        child.join()
        yield results.get() if not results.empty() else {"option": option, "error": f"the process ended with {child.exitcode}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--samples", type=int, default=Size.batch, help="of the losses of real numbers")
    arguments = parser.parse_args()
    known = sorted(path.stem for path in CONF.glob("*.yaml"))
    rows = []
    print(f"{'loss':<26}{'beside':<24}{'ratio':>7}{'time':>10}{'memory':>20}   size", file=sys.stderr)
    for row in measure_all(arguments.options or known, arguments.rounds, arguments.samples):
        rows.append(row)
        if "error" in row:
            print(f"{row['option']:<26}{row['error'].splitlines()[0][:110]}", file=sys.stderr)
            continue
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        memory = f"{row['bytes'] / 1e6:.0f}" + (f" / {row['bytes_baseline'] / 1e6:.0f}" if row["baseline"] else "") + " MB"
        reason = WHY.get(row["option"], SMALL if row["baseline"] == "mse" else "(no reason given)")
        why = reason if row["ratio"] and row["ratio"] > LIMIT else ""
        size = "×".join(map(str, row["size"]))
        figures = f"{ratio:>7}{1e3 * row['seconds']:>7.1f} ms{memory:>20}"
        print(f"{row['option']:<26}{row['baseline'] or '':<24}{figures}   {size}  {why}", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
