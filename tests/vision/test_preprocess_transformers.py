"""Preprocessing against transformers' own (Pillow) processors."""

import importlib

import pytest
import torch

from tests.vision.pictures import textured as picture
from vision.errors import VisionConfigError
from vision.preprocess import AnyResolution, GemmaPatches, NaflexPatches, Normalization, QwenPatches, naflex_patches

pytest.importorskip("transformers", reason="transformers is not installed, there is nothing to compare with")


def processor_of(model):
    return importlib.import_module(f"transformers.models.{model}.image_processing_pil_{model}")


@pytest.mark.parametrize("size", [(50, 40), (301, 97), (384, 384), (33, 500)])
def test_siglip_views(size):
    image = picture(*size)
    processor = processor_of("siglip").SiglipImageProcessorPil(size={"height": 46, "width": 46}, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    theirs = processor(image, return_tensors="pt")
    ours = AnyResolution(46, aspect="square")(image)
    assert ours.grid == (0, 0) and ours.size == size
    torch.testing.assert_close(ours.pixels, theirs["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(50, 40), (301, 97), (84, 84), (33, 500), (126, 42)])
def test_any_resolution_views(size):
    image = picture(*size)
    points = [(42 * i, 42 * j) for i in range(1, 5) for j in range(1, 5)]
    processor = processor_of("llava_onevision").LlavaOnevisionImageProcessorPil(
        size={"height": 42, "width": 42}, image_grid_pinpoints=[[h, w] for w, h in points], resample=3, image_mean=[0.4, 0.5, 0.6], image_std=[0.3, 0.4, 0.5]
    )
    theirs = processor(image, return_tensors="pt")
    ours = AnyResolution(42, tuple(sorted(points, key=lambda p: (p[1], p[0]))), normalization=Normalization((0.4, 0.5, 0.6), (0.3, 0.4, 0.5)))(image)
    torch.testing.assert_close(ours.pixels, theirs["pixel_values"][0], rtol=0, atol=1e-6)
    assert theirs["image_sizes"].tolist() == [[size[1], size[0]]]


@pytest.mark.parametrize("size", [(50, 40), (301, 97), (28, 28), (33, 500), (640, 480)])
@pytest.mark.parametrize("patch", [14, 16])
def test_qwen_patches(size, patch):
    images = [picture(*size), picture(90, 70, 5)]
    processor = processor_of("qwen2_vl").Qwen2VLImageProcessorPil(patch_size=patch, min_pixels=56 * 56, max_pixels=200 * 200)
    theirs = processor(images, return_tensors="pt")
    mine = QwenPatches(56 * 56, 200 * 200, patch=patch)
    pixels, grid = mine(images)
    assert torch.equal(grid, theirs["image_grid_thw"])
    torch.testing.assert_close(pixels, theirs["pixel_values"], rtol=0, atol=1e-6)
    assert [mine.count(image.size) for image in images] == (grid.prod(1) // 4).tolist()


@pytest.mark.parametrize("size", [(50, 40), (301, 97), (256, 256), (33, 500), (1000, 700), (4000, 3000)])
def test_naflex_patches(size):
    image = picture(*size)
    theirs = processor_of("siglip2").Siglip2ImageProcessorPil(patch_size=16, max_num_patches=100)(image, return_tensors="pt")
    ours = naflex_patches([image], patch=16, max_patches=100)
    assert isinstance(ours, NaflexPatches) and torch.equal(ours.grid, theirs["spatial_shapes"])
    torch.testing.assert_close(ours.pixels, theirs["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(50, 40), (301, 97), (48, 48), (33, 500), (2000, 30), (640, 480)])
@pytest.mark.parametrize("budget", [70, 280])
def test_gemma_patches(size, budget):
    images = [picture(*size), picture(90, 70, 5)]
    theirs = processor_of("gemma4").Gemma4ImageProcessorPil(max_soft_tokens=budget)(images, return_tensors="pt")
    mine = GemmaPatches(budget)
    pixels, places = mine(images)
    counts = theirs["num_soft_tokens_per_image"]
    assert [mine.count(image.size) for image in images] == [int(n) for n in counts]
    width = pixels.shape[1]  # theirs are padded to the budget
    assert torch.equal(places, theirs["image_position_ids"][:, :width]) and bool((theirs["image_position_ids"][:, width:] == -1).all())
    torch.testing.assert_close(pixels, theirs["pixel_values"][:, :width], rtol=0, atol=1e-6)


def test_gemma_options():
    config = {"max_soft_tokens": 560, "patch_size": 14, "pooling_kernel_size": 2, "resample": 2, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    patches = GemmaPatches.from_dict(config)
    assert (patches.budget, patches.patch, patches.pool, patches.filter, patches.normalization.mean) == (560, 14, 2, "bilinear", (0.5, 0.5, 0.5))
    assert GemmaPatches.from_dict({}, 4, 3) == GemmaPatches(280, 4, 3)
    with pytest.raises(VisionConfigError, match="max_soft_tokens"):
        GemmaPatches(100)
