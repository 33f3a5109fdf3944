import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from iso_d2.data import phantoms
from iso_d2.data.generated.phantoms import SLICES, Phantom


@pytest.fixture(scope="module")
def made():
    """The whole set, in the cache of the tests."""
    return phantoms.load_phantoms()


def test_a_slice_depends_on_seed_patient_and_number_alone():
    image, mask = Phantom(7, 3).draw(9)
    patient = Phantom(7, 3)
    patient.draw(8)
    again, mask_again = patient.draw(9)
    assert (image == again).all() and (mask == mask_again).all()
    assert image.shape == (96, 96, 3) and image.dtype == mask.dtype == np.uint8
    for seed, patient, number in ((8, 3, 9), (7, 4, 9), (7, 3, 10)):
        assert (Phantom(seed, patient).draw(number)[0] != image).mean() > 0.1


def test_heads_differ_in_size_and_place(made):
    """So that mapping predictions back has something to do; the top of a head is smaller than its middle."""
    middle = [r["placement"] for r in made.records if r["slice"] == 6]
    assert len({(p.top, p.left, p.side) for p in middle}) > 20
    assert max(p.side for p in middle) > 1.2 * min(p.side for p in middle)
    above = [r["placement"] for r in made.records if r["slice"] == SLICES]
    assert all(a.side < 0.7 * m.side for a, m in zip(above, middle, strict=True))
    assert all(m.height > m.width for m in middle)


def test_tumours(made):
    """About half of the slices have one, in a row, and each overlaps with that of the slice below."""
    has = made.labels.any(axis=(1, 2)).reshape(-1, SLICES)
    assert 0.4 < has.mean() < 0.6
    for patient in has:
        inside = np.flatnonzero(patient)
        assert len(inside) >= 4 and (np.diff(inside) == 1).all()
    for index in np.flatnonzero(has.ravel()[1:] & has.ravel()[:-1]):
        if made.records[index]["patient"] == made.records[index + 1]["patient"]:
            first, second = (
                np.asarray(Image.open(made.records[i]["mask_file_name"])) > 0 for i in (index, index + 1)
            )
            assert (first & second).sum() > 0.4 * min(first.sum(), second.sum())


def test_no_tumour_is_cropped_and_all_stay_visible(made):
    for record, label in zip(made.records, made.labels, strict=True):
        mask = np.asarray(Image.open(record["mask_file_name"])) > 0
        p = record["placement"]
        assert mask[p.top : p.top + p.height, p.left : p.left + p.width].sum() == mask.sum()
        assert label.any() == mask.any()


def test_a_threshold_finds_tumours_badly(made):
    """The best threshold of the second channel; skin is as bright. Inside the brain tumours are bright."""
    green, truth = made.images[:, 1].astype(int), made.labels > 0
    ious = []
    for level in range(60, 250, 10):
        found = green > level
        ious.append((found & truth).sum() / (found | truth).sum())
    assert max(ious) < 0.6
    assert green[truth].mean() > 1.4 * green[(green > 40) & ~truth].mean()


def test_registered_sets(made):
    dicts = {split: DatasetCatalog.get(f"phantom_{split}") for split in ("train", "test")}
    assert [len(part) for part in dicts.values()] == [20 * 16, 5 * 16]
    patients = [{record["patient"] for record in part} for part in dicts.values()]
    assert [len(names) for names in patients] == [20, 5] and not patients[0] & patients[1]
    for split, part in dicts.items():
        metadata = MetadataCatalog.get(f"phantom_{split}")
        assert metadata.evaluator_type == "medical_segmentation"
        arrays = metadata.load_arrays()
        assert arrays.images.shape == (len(part), 3, 64, 64) and arrays.labels.shape == (len(part), 64, 64)
        assert set(np.unique(arrays.labels)) == {0, 1}
    record = dicts["test"][17]
    assert record["image_id"] == "phantom021_2" and record["slice"] == 2
    assert np.asarray(Image.open(record["file_name"])).shape == (record["height"], record["width"], 3)
    assert np.unique(np.asarray(Image.open(record["mask_file_name"]))).tolist() in ([0], [0, 255])
