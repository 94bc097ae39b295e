"""Losses of predicted returns: what counts is not how near the number is, but whether its sign made money.

All of them are one formula, minus the profit of a position taken by the predicted sign; they differ in what stands for the sign, whose own gradient is 0.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from components.losses.base import Loss, Reduction, at_least_float32, nonzero
from components.losses.regression import check_real_target, without_missing
from components.validation import require, require_choice

Sign = Literal["exact", "straight_through", "tanh", "tanh_product", "sigmoid_product"]
SIGNS: tuple[Sign, ...] = ("exact", "straight_through", "tanh", "tanh_product", "sigmoid_product")


class DirectionalLoss(Loss):
    r"""Mean absolute directional loss: minus the profit of going long or short by the predicted sign. MADL and GMADL.

    .. math:: \ell_i = -\,s_i\,|r_i|^b

    with *r* the realised and :math:`\hat r` the predicted return, *b* = ``exponent`` and for the sign

    ====================  ==================================================================  ==========================================================
    ``sign``              :math:`s_i`                                                         gradient
    ====================  ==================================================================  ==========================================================
    ``exact``             :math:`\operatorname{sign}(r\,\hat r)`, sign(0) = 0: MADL           **0 almost everywhere**: to choose by, not to train with
    ``straight_through``  the same                                                            that of ``tanh``
    ``tanh``              :math:`\operatorname{sign}(r) \tanh(k\,\hat r)`                     smooth
    ``tanh_product``      :math:`\tanh(k\,r\,\hat r)`                                         smooth
    ``sigmoid_product``   :math:`\sigma(k\,r\,\hat r) - 1/2`: GMADL                           smooth; 2 · GMADL (*b* = 1) → MADL for :math:`k \to \infty`
    ====================  ==================================================================  ==========================================================

    *k* = ``steepness``. With ``relative`` the factor :math:`\hat r` in the sign (and *r*, in the products) is divided by its root mean square over the
    batch, so that one steepness suits returns of any unit; the loss then has no gradient along a rescaling of all predictions. About zero, not about the
    mean: our reading of "about 10 / (std r · std r̂)", which has no value where all predictions are equal.

    Try it where decisions follow the sign of a forecast. Targets must not be centred: their sign has to stay the return's
    (``data.standardise_target=false``).

    Args:
        sign: what stands for the sign, see above.
        steepness: *k* > 0. GMADL's authors take 1000 for returns as shares; see ``relative``.
        exponent: *b* >= 0, the weight of large moves; 1 in MADL, GMADL's authors take 1 to 2.
        relative: measure returns by their root mean square in the batch.
        eps: least root mean square, in the unit of returns; > 0.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        prediction and target of one shape, any: returns; NaN in target marks an ignored element.

    Raises:
        ValueError: if an option is out of its range, shapes differ or the target is not real-valued.

    Source:
        Michańków, Sakowski and Ślepaczuk, "Mean Absolute Directional Loss as a New Loss Function for Machine Learning Problems in Algorithmic Investment
        Strategies", 2023, arXiv:2309.10546; "Alternative Loss Function in Evaluation of Transformer Models", 2025, arXiv:2507.16548; GMADL: 2024,
        arXiv:2412.18405. ``straight_through`` and the two tanh forms are ours.
    """

    pairwise: ClassVar[bool] = True  # the root mean square is the whole batch's, over all ranks

    def __init__(
        self,
        sign: Sign = "sigmoid_product",
        *,
        steepness: float = 10.0,
        exponent: float = 1.0,
        relative: bool = True,
        eps: float = 1e-8,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        require_choice("sign", sign, SIGNS)
        require(steepness > 0, "steepness must be > 0", steepness)
        require(exponent >= 0, "exponent must be >= 0", exponent)
        require(eps > 0, "eps must be > 0", eps)
        self.sign, self.relative = sign, relative
        self.steepness: float | Tensor = steepness
        self.exponent: float | Tensor = exponent
        self.eps: float | Tensor = eps
        if sign == "straight_through":
            self.exempt = {"gradient": "straight through: the backward pass is the smooth sign's on purpose"}  # type: ignore[misc]
        if sign == "exact":
            self.exempt = {"gradient": "the exact sign has no gradient", "second_order": "the exact sign has no gradient"}  # type: ignore[misc]

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_real_target(prediction, target)
        dtype, precise = prediction.dtype, at_least_float32(prediction.dtype)
        predicted, target = prediction.to(precise), target.to(precise)
        realised = without_missing(target, torch.zeros_like(predicted))
        # the smallest power of 0 is 0, not 0⁰ = 1: no move earns nothing, whatever the exponent
        size = torch.where(realised == 0, torch.zeros_like(realised), nonzero(realised.abs()) ** self.exponent)
        return self.reduce(-self.sign_of(predicted, realised, ~target.isnan()) * size, target).to(dtype)

    def sign_of(self, predicted: Tensor, realised: Tensor, kept: Tensor) -> Tensor:
        """*s* of each element."""
        if self.sign == "exact":
            return predicted.sign() * realised.sign()
        if self.relative:
            predicted, realised_in_units = self.in_units(predicted, kept), self.in_units(realised, kept)
        else:
            realised_in_units = realised
        if self.sign == "tanh_product":
            return torch.tanh(self.steepness * realised_in_units * predicted)
        if self.sign == "sigmoid_product":  # σ(x) - 1/2 = tanh(x/2) / 2, without the rounding of the difference
            return 0.5 * torch.tanh(0.5 * self.steepness * realised_in_units * predicted)
        smooth = torch.tanh(self.steepness * predicted)
        if self.sign == "straight_through":
            smooth = predicted.sign().detach() + (smooth - smooth.detach())
        return smooth * realised.sign()

    def in_units(self, returns: Tensor, kept: Tensor) -> Tensor:
        """Returns divided by their root mean square over what is kept."""
        squares = torch.where(kept, returns.square(), torch.zeros_like(returns))
        mean = squares.sum() / nonzero(kept.sum().to(returns.dtype))
        return returns / (mean + self.eps**2).sqrt()
