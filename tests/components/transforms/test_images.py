import pytest
import torch
from torch.nn.functional import pad

from components.transforms import ImageAugment, RandomFlip, RandomShift


def pictures(size: int = 8, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.randn(size, 2, height, width, generator=torch.Generator().manual_seed(0))


def with_mask(inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """A mask that copies the sign of the picture, so that it can be seen to move along."""
    return {"inputs": inputs, "target": (inputs[:, 0] > 0).long()}


class TestRandomShift:
    @pytest.mark.parametrize(("fill", "mode"), [("reflect", "reflect"), ("edge", "replicate"), ("zeros", "constant")])
    def test_each_picture_is_a_window_of_the_padded_one(self, fill, mode):
        torch.manual_seed(0)
        inputs = pictures(40, 6, 9)
        moved = RandomShift(pixels=2, fill=fill)({"inputs": inputs})["inputs"]
        padded = pad(inputs, (2, 2, 2, 2), mode=mode)
        found = set()
        for i in range(40):
            windows = {(a, b) for a in range(5) for b in range(5) if torch.equal(moved[i], padded[i, :, a : a + 6, b : b + 9])}
            assert len(windows) == 1
            found |= windows
        assert len(found) > 12
        assert {a for a, _ in found} == {b for _, b in found} == set(range(5))

    def test_no_shift_is_the_identity(self):
        inputs = pictures()
        assert torch.equal(RandomShift(pixels=0)({"inputs": inputs})["inputs"], inputs)

    @pytest.mark.parametrize("fill", ["reflect", "edge"])
    def test_a_mask_moves_along(self, fill):
        torch.manual_seed(0)
        moved = RandomShift(fill=fill)(with_mask(pictures()))
        assert torch.equal(moved["target"], (moved["inputs"][:, 0] > 0).long())

    def test_where_zeros_come_in_the_mask_is_ignored(self):
        torch.manual_seed(0)
        batch = with_mask(pictures())
        moved = RandomShift(fill="zeros")({**batch, "inputs": batch["inputs"].abs() + 1})
        came_in = moved["inputs"][:, 0] == 0
        assert bool(came_in.any())
        assert torch.equal(moved["target"] == -100, came_in)

    def test_one_mask_per_class_moves_along(self):
        torch.manual_seed(0)
        inputs = pictures()
        moved = RandomShift()({"inputs": inputs, "target": (inputs > 0).float()})
        assert torch.equal(moved["target"], (moved["inputs"] > 0).float())

    def test_classes_stay(self):
        target = torch.arange(8)
        assert RandomShift()({"inputs": pictures(), "target": target})["target"] is target

    def test_refuses(self):
        with pytest.raises(ValueError, match="pixels must be >= 0, but got -1"):
            RandomShift(pixels=-1)
        with pytest.raises(ValueError, match="fill must be one of reflect, edge, zeros, but got 'zero'; did you mean 'zeros'"):
            RandomShift(fill="zero")
        with pytest.raises(ValueError, match=r"pixels must be smaller than the picture's sides \(8, 8\), but got 8"):
            RandomShift(pixels=8)({"inputs": pictures()})
        with pytest.raises(ValueError, match="random_shift takes pictures"):
            RandomShift()({"inputs": torch.zeros(3, 4)})


class TestRandomFlip:
    @pytest.mark.parametrize(("direction", "dim"), [("horizontal", -1), ("vertical", -2)])
    def test_each_picture_is_itself_or_its_mirror_image(self, direction, dim):
        torch.manual_seed(0)
        inputs = pictures(400)
        flipped = RandomFlip(0.3, direction)({"inputs": inputs})["inputs"]
        same = (flipped == inputs).all(dim=(1, 2, 3))
        mirrored = (flipped == inputs.flip(dim)).all(dim=(1, 2, 3))
        assert torch.equal(same, ~mirrored)
        assert mirrored.float().mean().item() == pytest.approx(0.3, abs=0.07)

    def test_always_and_never(self):
        inputs = pictures()
        assert torch.equal(RandomFlip(1.0)({"inputs": inputs})["inputs"], inputs.flip(-1))
        assert torch.equal(RandomFlip(0.0)({"inputs": inputs})["inputs"], inputs)

    def test_a_mask_is_mirrored_along(self):
        torch.manual_seed(0)
        flipped = RandomFlip()(with_mask(pictures()))
        assert torch.equal(flipped["target"], (flipped["inputs"][:, 0] > 0).long())

    def test_refuses(self):
        with pytest.raises(ValueError, match="probability"):
            RandomFlip(probability=2)
        with pytest.raises(ValueError, match="direction must be one of horizontal, vertical"):
            RandomFlip(direction="left")


NOTHING = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "flip": 0, "brightness": 0, "contrast": 0, "noise": 0}


class TestImageAugment:
    def test_with_all_at_nothing_it_is_the_identity(self):
        inputs = pictures()
        torch.testing.assert_close(ImageAugment(**NOTHING).augment(inputs), inputs, atol=1e-5, rtol=1e-5)

    def test_flip_alone(self):
        inputs = pictures()
        torch.testing.assert_close(ImageAugment(**{**NOTHING, "flip": 1}).augment(inputs), inputs.flip(-1), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 20)])
    def test_crops_have_the_asked_area_and_ratio_and_lie_inside(self, height, width):
        torch.manual_seed(0)
        boxes = ImageAugment(crop_scale=(0.3, 0.5), crop_ratio=(0.8, 1.25)).random_boxes(torch.zeros(2000, 1, height, width))
        w, h, x, y = boxes[:, 0, 0].abs(), boxes[:, 1, 1], boxes[:, 0, 2], boxes[:, 1, 2]
        assert bool(((w * h > 0.3 - 1e-5) & (w * h < 0.5 + 1e-5)).all())
        assert bool(((w / h > 0.8 - 1e-5) & (w / h < 1.25 + 1e-5)).all())
        assert bool((x.abs() + w <= 1 + 1e-5).all())
        assert bool((y.abs() + h <= 1 + 1e-5).all())
        assert (boxes[:, 0, 0] < 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
        assert x.mean().item() == pytest.approx(0, abs=0.02)

    def test_a_crop_enlarges_a_part_of_the_picture(self):
        """On a ramp from -1 to 1 the view is again a ramp, flatter by the crop's width and between the same ends."""
        torch.manual_seed(0)
        ramp = torch.linspace(-1, 1, 32).expand(50, 1, 32, 32).clone()
        view = ImageAugment(**{**NOTHING, "crop_scale": (0.25, 0.25)}).augment(ramp)
        slopes = view[:, 0, :, 17] - view[:, 0, :, 16]
        torch.testing.assert_close(slopes, torch.full_like(slopes, 0.5 * 2 / 31), atol=1e-4, rtol=0)
        assert view.abs().max().item() <= 1 + 1e-5

    def test_brightness_multiplies_and_contrast_keeps_the_mean(self):
        torch.manual_seed(0)
        inputs = pictures(100) + 1
        bright = ImageAugment(**{**NOTHING, "brightness": 0.4}).augment(inputs)
        factors = (bright / inputs).flatten(1)
        torch.testing.assert_close(factors, factors[:, :1].expand_as(factors), atol=1e-3, rtol=1e-3)
        assert factors.min().item() >= 0.6 - 1e-3
        assert factors.max().item() <= 1.4 + 1e-3
        assert factors[:, 0].std().item() > 0.1
        contrasted = ImageAugment(**{**NOTHING, "contrast": 0.4}).augment(inputs)
        torch.testing.assert_close(contrasted.mean(dim=(1, 2, 3)), inputs.mean(dim=(1, 2, 3)))
        ratio = contrasted.flatten(1).std(1) / inputs.flatten(1).std(1)
        assert ratio.min().item() >= 0.6 - 1e-3
        assert ratio.max().item() <= 1.4 + 1e-3
        assert ratio.std().item() > 0.1

    def test_noise_alone(self):
        torch.manual_seed(0)
        inputs = torch.zeros(50, 1, 16, 16)
        assert ImageAugment(**{**NOTHING, "noise": 0.3}).augment(inputs).std().item() == pytest.approx(0.3, rel=0.05)

    def test_two_views_differ_and_the_seed_repeats_them(self):
        augment, inputs = ImageAugment(), pictures()
        torch.manual_seed(0)
        first, second = augment.augment(inputs), augment.augment(inputs)
        assert not torch.equal(first, second)
        torch.manual_seed(0)
        assert torch.equal(augment.augment(inputs), first)

    def test_samples_are_augmented_differently(self):
        torch.manual_seed(0)
        views = ImageAugment(**{**NOTHING, "crop_scale": (0.3, 0.6)}).augment(pictures(1).expand(5, 2, 8, 8))
        assert not any(torch.equal(views[0], view) for view in views[1:])

    @pytest.mark.parametrize("dtype", [torch.long, torch.uint8, torch.float32])
    def test_a_mask_is_cropped_and_mirrored_along(self, dtype):
        """The left half of picture and mask is 1: wherever the view is clearly 0 or 1, so is its mask."""
        torch.manual_seed(0)
        inputs = torch.zeros(20, 1, 16, 16)
        inputs[..., :8] = 1
        view = ImageAugment(brightness=0, contrast=0)({"inputs": inputs, "target": inputs[:, 0].to(dtype)})
        assert view["target"].dtype == dtype
        clear = (view["inputs"][:, 0] - 0.5).abs() > 0.499
        assert clear.float().mean().item() > 0.8
        assert torch.equal(view["target"][clear].float(), view["inputs"][:, 0][clear].round())
        assert set(view["target"].unique().tolist()) == {0, 1}

    def test_refuses(self):
        for wrong in ((0, 1), (0.8, 0.5), (0.5, 1.5), (0.5,), 0.5):
            with pytest.raises(ValueError, match=r"crop_scale must be \[low, high\] with 0 < low <= high <= 1"):
                ImageAugment(crop_scale=wrong)
        with pytest.raises(ValueError, match=r"crop_ratio must be \[low, high\] with 0 < low <= high, but got"):
            ImageAugment(crop_ratio=(2, 1))
        for name in ("brightness", "contrast", "noise"):
            with pytest.raises(ValueError, match=f"{name} must be >= 0, but got -1"):
                ImageAugment(**{name: -1})
        with pytest.raises(ValueError, match="flip must be"):
            ImageAugment(flip=-0.1)
        with pytest.raises(ValueError, match="image_augment takes pictures"):
            ImageAugment().augment(torch.zeros(4, 8, 8))
