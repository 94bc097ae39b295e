"""Every option of conf/loss goes through the contract kit: adding an option file is enough to be tried."""

import inspect
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import nn

from components import losses
from components.quantities import QUANTITIES
from components.testing import LossContract, example_facts, example_quantities

CONF = Path(__file__).parents[3] / "conf" / "loss"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))


def build(option: str) -> nn.Module:
    config = OmegaConf.load(CONF / f"{option}.yaml")
    facts = {name: value for name, value in example_facts().items() if name in inspect.signature(get_class(config._target_)).parameters and name not in config}
    return instantiate(config, **facts, _convert_="all")


class TestOptions(LossContract):
    @pytest.fixture(params=OPTIONS)
    def loss(self, request: pytest.FixtureRequest) -> nn.Module:
        return build(request.param)


class TestOptionsWithOtherSettings(LossContract):
    """The same trials where settings switch other code on."""

    SETTINGS: ClassVar[dict[str, dict[str, Any]]] = {
        "anyloss": {"metric": "gmean", "eps": 1e-3},
        "arctan_decay": {"decay": "power", "error": "mse"},
        "cross_entropy": {"label_smoothing": 0.1},
        "bce": {"label_smoothing": 0.1, "pos_weight": [1.0, 2.0, 0.5, 3.0, 1.0]},
        "cs_ib": {"code_compat": True, "beta": 0.5, "sigma_inputs": 2.0},
        "correctness_aware": {"balanced": False},
        "dsc": {"level": "set", "alpha": 0.5, "activation": "sigmoid", "fp_weight": 0.3, "fn_weight": 0.7},
        "ensloss": {"lam": -0.5},
        "focal": {"gamma": 0.5},
        "gmadl": {"sign": "tanh_product", "relative": False, "exponent": 1.5},
        "hinge": {"squared": True, "margin": 0.5},
        "madl": {"sign": "tanh", "steepness": 2.0},
        "mbe": {"kind": "squared", "over": "column"},
        "multiclass_hinge": {"over": "max", "squared": True},
        "nrmse": {"scale": "iqr", "over": "column"},
        "poly1": {"epsilon": -1.0, "label_smoothing": 0.2},
        "gaussian_nll": {"full": True},
        "quantile": {"levels": [0.25]},
        "dice": {"square": True, "smooth": 0.1},
        "profit_regret": {"surrogate": "spo", "unit": 10.0},
        "rae": {"scale": "prediction", "over": "sample"},
        "rmsle": {"negative": "clamp", "over": "sample"},
        "rrmse": {"scale": "range", "total": False},
        "rse": {"scale": "mean", "root": True},
        "triplet": {"distance": "euclidean", "normalize": False, "margin": 1.0},
        "next_token": {"z_loss": 0.01},
        "adversarial_calibration": {"mode": "info_nce", "consistency": 0.5},
        "distribution_bound": {"enlarge": 0.4},
        "tal": {"negatives": "sum", "margin": 0.3},
        "linear_cross_entropy": {"chunk_size": 3},
        "contrastive": {"distance": "cosine", "squared": False, "average": "all", "positive_margin": 0.1, "margin": 0.8},
        "ge2e": {"kind": "contrast"},
        "icnn": {"neighbours": 1, "normalize": True},
        "lifted_structure": {"per": "anchor", "distance": "squared_euclidean"},
        "metrix": {"pairs": "proxy_anchor", "mixes": "anchor_negative", "num_classes": 5, "embedding_dim": 6},
        "multi_similarity": {"epsilon": math.inf},
        "proto_triplet": {"normalize": True, "margin": 1.0},
        "prototypical": {"normalize": True},
        "sphereface": {"learn_scale": True, "num_classes": 5, "embedding_dim": 6},
        "tweedie": {"link": "identity", "power": 1.2},
        "unpg": {"scale": 16.0, "scale_by_length": True, "length_margin": 0.3, "length_penalty": 20.0, "shortest": 0.5, "num_classes": 5, "embedding_dim": 6},
        "betti_matching": {"filtration": "both", "relative": True, "include_background": True},
        "boundary": {"include_background": True, "normalize": True},
        "generalized_dice": {"weighting": "simple", "smooth": 0.1},
        "lovasz_softmax": {"classes": "all"},
        "mip": {"per_image": False, "include_background": True, "gamma": 1.3},
        "elbo_segmentation": {"over_pixels": "mean", "kl_weight": 0.1},
        "ideal_binary_mask": {"mask": "softmax"},
        "pulaski": {"distance": "energy"},
        "spectrogram_mse": {"mask": "softmax"},
        "taylor_softmax": {"order": 6},
        "poly_n": {"epsilons": [0.5, -0.5, 2.0], "gamma": 0.5, "terms": 4, "label_smoothing": 0.1},
        "ldr_kl": {"temperature": 0.1, "normalize": "softplus"},
        "aldr_kl": {"num_samples": 105, "temperature": 0.5, "normalize": "l1"},
        "legendre_tron": {"num_classes": 5, "blocks": 2, "depth": 2},
        "smooth_adv_comp_sum": {"tau": 2.0, "rho": 0.5, "gamma": 0.3, "steps": 2},
        "trades": {"beta": 1.0, "gamma": 0.3, "norm": "l2", "steps": 2},
        "psl": {"activation": "relu", "include_positive": True},
        "mann_whitney": {"negatives": "sum", "temperature": 1.0},
        "soft_top_k": {"k": None, "alpha": 10.0},
        "welfare_rank": {"link": "hinge", "per_pair": True},
        "bpr": {"negatives": "sum"},
        "frequency_modulated": {"downscale": 1, "total_steps": 5},
        "sparse_transport": {"k": 1},
        "score_distribution": {"label": "cdf"},
        "thurstone_fidelity": {"stds": "predicted"},
        "unfolded_objective": {"penalty": "l0"},
    }

    @pytest.fixture(params=sorted(SETTINGS))
    def loss(self, request: pytest.FixtureRequest) -> nn.Module:
        loss = instantiate(OmegaConf.load(CONF / f"{request.param}.yaml"), **self.SETTINGS[request.param], _convert_="all")
        if request.param == "cross_entropy":
            loss.exempt = {"class_weight": "with label smoothing torch's class weights also act inside the smoothed sum, and this loss equals torch's"}
        return loss


NAMED_CASES: dict[str, dict[str, Any]] = {
    "amarx": {"enlarge": 0.5},
    "box_diou": {"kind": "diou"},
    "box_giou": {"kind": "giou"},
    "box_iou": {"kind": "iou"},
    "cosface": {"angle_margin": 0.0, "cosine_margin": 0.35},
    "focal_tversky": {"gamma": 0.75},
    "gamma_nll": {"power": 2.0},
    "gce": {"tau": 1.7},
    "jaccard": {"fp_weight": 1.0, "fn_weight": 1.0},
    "madl": {"sign": "straight_through"},
    "magface": {"angle_margin": 0.45, "past_pi": "none", "length_margin": 0.35, "length_penalty": 20.0},
    "margin_ranking": {"link": "hinge", "margin": 1.0},
    "multilabel_softmax": {"wanted": "normalized"},
    "normface": {"scale": 20.0, "angle_margin": 0.0},
    "nrmse": {"root": True},
    "poisson_nll": {"power": 1.0},
    "poly1_focal": {"epsilons": [1.0], "gamma": 2.0},
    "rae": {"power": 1},
    "rmse": {"root": True, "scale": "none"},
    "rmsle": {"root": True},
    "rrmse": {"root": True, "scale": "prediction", "total": True},
    "sampled_softmax": {"activation": "exp", "temperature": 1.0, "score_temperature": 1.0, "include_positive": True},
    "signal_decay": {"decay": "power"},
    "smape": {"symmetric": True},
    "softmax_loss": {"activation": "exp", "score_temperature": 1.0},
    "softmax_mae": {"tau": 2.0},
    "sphereface": {"scale": 1.0, "angle_factor": 4.0, "angle_margin": 0.0, "past_pi": "monotone", "scale_by_length": True},
    "sum_exponential": {"tau": 0.0},
    "triplet_ranking": {"negatives": "hardest"},
    "wape": {"power": 1, "scale": "target"},
}
"""Options that are a class with other values than its defaults: the name that the field has for that case."""


@pytest.mark.parametrize("option", OPTIONS)
def test_option_file_shows_its_source_and_every_parameter(option: str) -> None:
    text = (CONF / f"{option}.yaml").read_text()
    first = text.splitlines()[0]
    assert first.startswith("# ") and "(" in first, "the first line is a comment: what it is (source)"
    config = OmegaConf.create(text)
    parameters = inspect.signature(get_class(config._target_)).parameters
    shown = {name: value for name, value in OmegaConf.to_container(config).items() if name != "_target_"}
    assert set(shown) == set(parameters) - set(example_facts())
    defaults = {name: list(p.default) if isinstance(p.default, tuple) else p.default for name, p in parameters.items() if name in shown}
    assert shown == {**defaults, **NAMED_CASES.get(option, {})}


def test_every_loss_has_an_option() -> None:
    classes = {c for c in vars(losses).values() if inspect.isclass(c) and issubclass(c, losses.Loss)} - {losses.Loss}
    assert classes == {get_class(OmegaConf.load(CONF / f"{option}.yaml")._target_) for option in OPTIONS}


def test_every_quantity_of_the_vocabulary_has_an_example() -> None:
    made = example_quantities(QUANTITIES, batch=4)
    assert set(made) == set(QUANTITIES)
    with pytest.raises(ValueError, match="logit"):
        example_quantities(["logit"])
