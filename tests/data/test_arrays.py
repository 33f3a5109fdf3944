import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from iso_d2.data import LabelledImages, SegmentedImages, register_labelled_images, register_segmented_images
from iso_d2.placement import Placement


def make(count=4, size=6):
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (count, 3, size, size), np.uint8)
    labels = rng.integers(0, 2, (count, size, size), np.uint8)
    records = [
        {
            "file_name": f"a/{i}.png",
            "mask_file_name": f"a/{i}_mask.png",
            "image_id": str(i),
            "placement": Placement(top=i, left=1, height=2, width=3),
        }
        for i in range(count)
    ]
    return SegmentedImages(images, labels, records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": np.zeros((4, 1, 6, 6), np.uint8)},
            r"images must be uint8 \(N, 3, H, W\), got uint8 \(4, 1",
        ),
        (
            {"images": np.zeros((4, 3, 6, 5), np.uint8), "labels": np.zeros((4, 6, 5), np.uint8)},
            r"images must be square, got \(4, 3, 6, 5\)",
        ),
        ({"images": np.zeros((4, 3, 6, 6), np.float32)}, r"got float32 \(4, 3, 6, 6\)"),
        ({"labels": np.zeros((4, 6), np.uint8)}, r"labels must be uint8 \(4, 6, 6\).* got uint8 \(4, 6\)"),
        ({"labels": np.zeros((4, 6, 6), np.int64)}, r"labels must be uint8 .* got int64"),
        ({"records": [{}]}, r"4 images need as many records, got 1"),
    ],
)
def test_wrong_arrays_are_named(change, message):
    parts = {**vars(make()), **change}
    with pytest.raises(ValueError, match=message):
        SegmentedImages(**parts)


def test_saved_and_loaded_again(tmp_path):
    made = make()
    made.save(tmp_path)
    loaded = SegmentedImages.load(tmp_path, tmp_path / "root")
    assert (loaded.images == made.images).all() and (loaded.labels == made.labels).all()
    assert isinstance(loaded.images, np.memmap) and not loaded.images.flags.writeable
    assert loaded.records[2] == {
        "file_name": str(tmp_path / "root" / "a" / "2.png"),
        "mask_file_name": str(tmp_path / "root" / "a" / "2_mask.png"),
        "image_id": "2",
        "placement": Placement(2, 1, 2, 3),
    }


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "records.json"])
def test_a_damaged_cache_is_named(tmp_path, name):
    make().save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    for content in (b"", b"[1", whole[:-20], whole.replace(b"}", b"{")):  # the last: a dict that has no end
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"cannot read {tmp_path} \(.*\)\. Remove it: it is then made"):
            SegmentedImages.load(tmp_path, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="Remove it"):
        SegmentedImages.load(tmp_path, tmp_path)


def test_a_registered_part(tmp_path):
    make().save(tmp_path)

    def load():
        return SegmentedImages.load(tmp_path, tmp_path)

    register_segmented_images("some_slices", load, lambda records: [3, 1], 6)
    try:
        metadata = MetadataCatalog.get("some_slices")
        assert metadata.evaluator_type == "medical_segmentation" and metadata.image_size == 6
        assert metadata.stuff_classes == ["background", "tumour"] and metadata.ignore_label == 255
        dicts = DatasetCatalog.get("some_slices")
        assert [record["image_id"] for record in dicts] == ["3", "1"]
        arrays = metadata.load_arrays()
        # In memory and writeable, as torch.from_numpy wants them
        assert type(arrays.images) is np.ndarray or arrays.images.flags.owndata
        assert arrays.images.flags.writeable and arrays.labels.flags.writeable
        for index, record in enumerate(dicts):
            assert (record["image_array"] == make().images[int(record["image_id"])]).all()
            assert (record["image_array"] == arrays.images[index]).all()
            assert (record["sem_seg_array"] == arrays.labels[index]).all()
            assert type(record["image_array"]) is np.ndarray
    finally:
        DatasetCatalog.remove("some_slices")
        MetadataCatalog.pop("some_slices")


@pytest.mark.parametrize(
    ("images", "numbers", "message"),
    [
        (
            np.zeros((2, 4, 4, 3), np.uint8),
            np.zeros(2, np.int64),
            r"uint8 \(N, 3, H, W\), got uint8 \(2, 4, 4, 3\)",
        ),
        (np.zeros((2, 3, 4, 4)), np.zeros(2, np.int64), "got float64"),
        (
            np.zeros((2, 3, 4, 4), np.uint8),
            np.zeros(3, np.int64),
            r"labels must be int64 \(2,\).* got int64 \(3,\)",
        ),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2, np.uint8), "got uint8"),
    ],
)
def test_labelled_arrays_of_other_kinds_are_refused(images, numbers, message):
    with pytest.raises(ValueError, match=message):
        LabelledImages(images, numbers)


def test_dataset_dicts_of_labelled_images_are_views():
    loaded = LabelledImages(np.arange(3 * 3 * 4 * 5, dtype=np.uint8).reshape(3, 3, 4, 5), np.array([7, 0, 3]))
    register_labelled_images("some_images", lambda: loaded, ["x"] * 8)
    try:
        dicts = DatasetCatalog.get("some_images")
        assert MetadataCatalog.get("some_images").load_arrays() is loaded
    finally:
        DatasetCatalog.remove("some_images")
        MetadataCatalog.pop("some_images")
    assert [record["image_id"] for record in dicts] == [0, 1, 2]
    assert [record["label"] for record in dicts] == [7, 0, 3]
    assert {type(record["label"]) for record in dicts} == {int}
    assert (dicts[1]["height"], dicts[1]["width"]) == (4, 5)
    assert (dicts[1]["image_array"] == loaded.images[1]).all()
    assert np.shares_memory(dicts[1]["image_array"], loaded.images)
