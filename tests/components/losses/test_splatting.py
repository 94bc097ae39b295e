"""The picture loss with its frequency curriculum: SSIM as torchmetrics has it, the mask as the paper describes it."""

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from components.losses import FrequencyModulatedLoss
from components.losses.splatting import blurred, frequency_mask, frequency_sigma, gaussian_kernel, ssim_map


def pictures(channels=3, size=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(2, channels, size, size + 3, generator=generator, dtype=torch.float64) for _ in range(2))


def half_and_half(size=20):
    """Black on the left, white on the right."""
    return (torch.arange(size) >= size // 2).double().expand(1, 1, size, size)


class TestMask:
    def test_schedule_of_the_width(self):
        assert [frequency_sigma(f) for f in (0, 20, 50, 75, 100)] == pytest.approx([0.1, 2.1, 5.1, 2.6, 0.1])

    @pytest.mark.parametrize("frequency", [0, 30, 49, 50, 80, 99])
    def test_is_binary_and_has_no_gradient(self, frequency):
        image, _ = pictures()
        mask = frequency_mask(image.requires_grad_(), frequency)
        assert mask.shape == (2, 1, 20, 23) and not mask.requires_grad
        assert set(mask.unique().tolist()) <= {0.0, 1.0} and 0 < mask.mean() < 1

    @pytest.mark.parametrize("frequency", [10, 90])
    def test_of_a_black_picture_is_empty(self, frequency):
        assert (frequency_mask(torch.zeros(1, 3, 20, 20), frequency) == 0).all()

    def test_of_a_constant_picture_is_a_frame(self):
        """Zeros outside the picture are an edge; in the middle there is none."""
        mask = frequency_mask(torch.full((1, 1, 40, 40), 0.7), 80, downscale=1)[0, 0]
        assert mask[10:30, 10:30].unique().numel() == 1 and mask.unique().numel() == 2

    def test_late_it_marks_the_bright_side_of_an_edge_early_the_rest(self):
        late, early = (frequency_mask(half_and_half(40), f, downscale=1)[0, 0, 20] for f in (90, 10))
        assert late[20] == 1 and late[5] == 0 and late.sum() < 10
        assert early[20] == 0 and early[5] == 1

    def test_each_picture_has_its_own(self):
        image, other = pictures()
        both = torch.cat([image[:1], 100 * other[:1]])
        torch.testing.assert_close(frequency_mask(both, 70)[:1], frequency_mask(image[:1], 70))

    def test_blurring_is_a_convolution_with_a_gaussian_of_two_dimensions(self):
        image, _ = pictures(1)
        kernel = gaussian_kernel(7, 1.1, image)
        direct = torch.nn.functional.conv2d(image, torch.outer(kernel, kernel)[None, None], padding=3)
        torch.testing.assert_close(blurred(image, 1.1), direct)
        assert kernel.sum().item() == pytest.approx(1)


class TestLoss:
    def test_of_the_same_picture_is_0(self):
        image, _ = pictures()
        for step in (0, 49, 50, 99):
            assert FrequencyModulatedLoss(100)(image, image, step).item() == pytest.approx(0, abs=1e-12)

    def test_without_the_mask_is_that_of_gaussian_splatting(self):
        image, truth = pictures()
        value = FrequencyModulatedLoss(100, mask_weight=0.0)(image, truth, 30)
        torch.testing.assert_close(value, 0.8 * (image - truth).abs().mean() + 0.2 * (1 - ssim_map(image, truth).mean()))

    def test_with_the_mask_is_the_sum_of_three(self):
        image, truth = pictures()
        value = FrequencyModulatedLoss(200)(image, truth, 60)
        error, mask = (image - truth).abs(), frequency_mask(image, 30)
        torch.testing.assert_close(value, 0.3 * error.mean() + 0.2 * (1 - ssim_map(image, truth).mean()) + 0.5 * (mask * error).mean())

    def test_similarity_is_torchmetrics_inside(self):
        """Outside the picture torchmetrics mirrors and this has zeros: compared where the window lies within."""
        image, truth = pictures(size=30)
        _, theirs = structural_similarity_index_measure(image, truth, sigma=1.5, data_range=1.0, return_full_image=True)
        inside = (slice(None), slice(None), slice(5, -5), slice(5, -5))
        torch.testing.assert_close(ssim_map(image, truth)[inside], theirs[inside], rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"total_steps": 0}, "total_steps must be >= 1"),
            ({"ssim_weight": -0.1}, "ssim_weight must be >= 0"),
            ({"mask_weight": 0.9}, r"ssim_weight \+ mask_weight must be <= 1"),
            ({"downscale": 0}, "downscale must be >= 1"),
        ],
    )
    def test_refuses_wrong_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            FrequencyModulatedLoss(**{"total_steps": 10, **options})
