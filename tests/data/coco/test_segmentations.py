import numpy as np
import pycocotools.mask as mask_util
import pytest

from iso_d2.data.coco.segmentations import fault_of_segmentation


def rle(mask):
    return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))


@pytest.mark.parametrize("seed", range(30))
def test_what_pycocotools_encodes_is_good(seed):
    draw = np.random.default_rng(seed)
    height, width = draw.integers(1, 90, 2).tolist()
    mask = draw.random((height, width)) < draw.choice([0, 0.02, 0.5, 1])
    encoded = rle(mask)
    assert fault_of_segmentation(encoded, height, width) == ""
    assert fault_of_segmentation({**encoded, "counts": encoded["counts"].decode()}, height, width) == ""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [not flat[-1]]])))
    runs = np.diff(np.concatenate([[0], edges])).tolist()
    assert fault_of_segmentation({"size": [height, width], "counts": runs}, height, width) == ""
    assert fault_of_segmentation(encoded, height + 1, width).startswith("RLE of the image's size")


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c[:-1],
        lambda c: c + b"3",
        lambda c: b"\xff" + c,
        lambda c: b"",
        lambda c: b"garbage!",
        lambda c: b"ooooooooooooooooo",
        lambda c: None,
        lambda c: [10**12],
        lambda c: [float("nan")],
        lambda c: [-5, 1205],
    ],
)
def test_false_runs(change):
    mask = np.zeros((30, 40), bool)
    mask[3:9, 4:11] = True
    damaged = {"size": [30, 40], "counts": change(rle(mask)["counts"])}
    assert fault_of_segmentation(damaged, 30, 40) == "RLE whose runs are 1200 pixels in all"


def test_huge_sizes():
    huge = {"size": [10**6, 10**6], "counts": [10**12]}
    assert "size [30, 40], got [1000000, 1000000]" in fault_of_segmentation(huge, 30, 40)


@pytest.mark.parametrize(
    "polygons, wanted",
    [
        ([[1, 1, 9, 1, 9, 9]], ""),
        ([[-1, -1, 9, 1, 9, 50]], ""),
        ([], ""),
        ([[1, float("nan"), 9, 1, 9, 9]], "polygons of finite numbers"),
        ([[1, "2", 9, 1, 9, 9]], "polygons of finite numbers"),
        ([1, 2], "polygons that are lists of numbers"),
        ([[41, 1, 49, 1, 49, 9]], "polygons within the 40x30 image"),
        ([[1, -9, 9, -1, 9, -3]], "polygons within the 40x30 image"),
        ([[1, 1, 2**63, 1, 9, 9]], "polygons near the 40x30 image"),
        ([[1, 1, 9, -1e9, 9, 9]], "polygons near the 40x30 image"),
        (7, "a list of polygons, or RLE with size and counts"),
        ({"size": [30, 40]}, "a list of polygons, or RLE with size and counts"),
    ],
)
def test_polygons(polygons, wanted):
    assert fault_of_segmentation(polygons, 30, 40) == wanted
