import os

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from lgg_files import SIDE, picture
from PIL import Image

from iso_d2.data import lgg
from iso_d2.data.lgg import slices
from iso_d2.placement import Placement


def test_slices_are_paired_and_in_natural_order(tree):
    whole = lgg.load_lgg()
    names = [("TCGA_A", i) for i in range(1, 13)] + [(p, i) for p in ("TCGA_B", "TCGA_C") for i in (1, 2, 3)]
    assert [(record["patient"], record["slice"]) for record in whole.records] == names
    assert whole.images.shape == (18, 3, 224, 224) and whole.labels.shape == (18, 224, 224)
    record = whole.records[13]
    assert record == {
        "file_name": str(tree / "TCGA_B" / "TCGA_B_2.tif"),
        "mask_file_name": str(tree / "TCGA_B" / "TCGA_B_2_mask.tif"),
        "image_id": "TCGA_B_2",
        "height": SIDE,
        "width": SIDE,
        "patient": "TCGA_B",
        "slice": 2,
        "placement": record["placement"],
    }
    # The head is 30 x 20 pixels from row 5, column 10; pads of 5 columns make it a square.
    assert record["placement"] == Placement(top=5, left=10, height=30, width=20)
    assert whole.images[13, :, 112, 112].tolist() == [100, 62, 80]
    # Of the tumour, rows 10 to 16 and columns 12 to 20, a pixel is 224 / 30 = 7.5 pixels wide.
    rows, columns = (np.flatnonzero(whole.labels[13].any(axis=axis)) for axis in (1, 0))
    assert np.unique(whole.labels[13]).tolist() == [0, 1]
    assert (rows[0], rows[-1] + 1) == pytest.approx((5 * 224 / 30, 11 * 224 / 30), abs=1)
    assert (columns[0], columns[-1] + 1) == pytest.approx((7 * 224 / 30, 15 * 224 / 30), abs=1)
    assert not whole.labels[12].any()


def test_what_lies_around_is_ignored(tree):
    for name in ("data.csv", "README.md", ".DS_Store"):
        (tree / name).write_text("x")
    (tree / ".hidden").mkdir()
    (tree / "TCGA_B" / "Thumbs.db").write_text("x")
    (tree / "TCGA_B" / "._TCGA_B_1.tif").write_text("x")
    assert len(lgg.load_lgg().records) == 18


def remove(tree, *names):
    for name in names:
        (tree / name).unlink()


def add(tree, name, array):
    Image.fromarray(array).save(tree / name)


def empty(tree):
    for path in (tree / "TCGA_B").iterdir():
        path.unlink()


IMAGE, MASK = picture(2)
FAULTS = {
    "no mask": (lambda t: remove(t, "TCGA_B/TCGA_B_2_mask.tif"), "TCGA_B has no mask of slice 2"),
    "no image": (
        lambda t: remove(t, "TCGA_B/TCGA_B_2.tif"),
        "TCGA_B has masks without images of slice 2",
    ),
    "gap": (
        lambda t: remove(t, *(f"TCGA_A/TCGA_A_{n}{m}.tif" for n in (3, 11) for m in ("", "_mask"))),
        "TCGA_A lacks, of its 12 slices, slice 3, 11",
    ),
    "too many": (
        lambda t: [add(t, f"TCGA_B/TCGA_B_4{m}.tif", a) for m, a in (("", IMAGE), ("_mask", MASK))],
        "TCGA_B has 3 slices, but there are also slice 4",
    ),
    "other name": (
        lambda t: add(t, "TCGA_B/TCGA_A_1.tif", IMAGE),
        "TCGA_B/TCGA_A_1.tif is not named TCGA_B_<slice>.tif or TCGA_B_<slice>_mask.tif",
    ),
    "empty": (empty, "TCGA_B is empty: it has no .tif files"),
    "unknown": (lambda t: (t / "patient7").mkdir(), "patient7 is none of the 3 patients"),
    "sizes": (
        lambda t: add(t, "TCGA_B/TCGA_B_2_mask.tif", MASK[:-1]),
        "TCGA_B/TCGA_B_2_mask.tif is of size (39, 40), its image of size (40, 40)",
    ),
    "values": (
        lambda t: add(t, "TCGA_B/TCGA_B_2_mask.tif", MASK // 255),
        "TCGA_B/TCGA_B_2_mask.tif has values other than 0 and 255: 1",
    ),
    "grey image": (
        lambda t: add(t, "TCGA_B/TCGA_B_2.tif", IMAGE[..., 0]),
        "TCGA_B/TCGA_B_2.tif must be of mode RGB (three channels of 8 bits), got L",
    ),
    "colour mask": (
        lambda t: add(t, "TCGA_B/TCGA_B_2_mask.tif", IMAGE),
        "TCGA_B/TCGA_B_2_mask.tif must be of mode L (one channel of 8 bits), got RGB",
    ),
    "no tif": (
        lambda t: (t / "TCGA_B/TCGA_B_2.tif").write_bytes(b"no tif"),
        "TCGA_B/TCGA_B_2.tif cannot be read (UnidentifiedImageError",
    ),
    "truncated": (
        lambda t: os.truncate(t / "TCGA_B/TCGA_B_2.tif", 2000),
        "TCGA_B/TCGA_B_2.tif cannot be read (",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_leave_no_cache(tree, fault):
    spoil, sentence = FAULTS[fault]
    spoil(tree)
    with pytest.raises(ValueError) as caught:
        DatasetCatalog.get("lgg_train")
    message = str(caught.value)
    assert message.startswith(f"lgg, in {tree}: 1 problems. Copy the patients concerned anew")
    assert f"\n  {sentence}" in message
    assert not list((tree.parents[1]).glob("cache/*"))


def test_many_faults_are_listed_together(tree):
    for number in range(1, 12):
        (tree / "TCGA_A" / f"TCGA_A_{number}.tif").write_bytes(b"")
    with pytest.raises(ValueError, match=r"11 problems") as caught:
        lgg.load_lgg()
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + slices.LISTED + 1 and lines[-1] == "  ... and 3 more"
