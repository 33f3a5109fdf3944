import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from iso_d2.data import shape_images
from iso_d2.data.generated.shape_images import draw_shapes


@pytest.fixture(scope="module")
def drawn():
    return draw_shapes(400, seed=5)


def test_a_longer_set_begins_with_the_shorter_one_of_its_seed(drawn):
    again, other = draw_shapes(20, seed=5), draw_shapes(20, seed=6)
    assert (again.images == drawn.images[:20]).all() and (again.labels == drawn.labels[:20]).all()
    assert all((a != b).any() for a, b in zip(again.images, other.images, strict=True))


def test_classes_are_balanced_and_images_differ(drawn):
    assert np.bincount(drawn.labels).tolist() == [40] * 10
    assert len({image.tobytes() for image in drawn.images}) == 400
    assert drawn.images.shape == (400, 3, 32, 32)


def nearest_mean_accuracy(features, labels):
    """Of 10 classes, by the nearest class mean of standardised features; the means are of the first half."""
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    half = len(labels) // 2
    means = np.stack([features[:half][labels[:half] == label].mean(axis=0) for label in range(10)])
    distances = ((features[half:, None] - means) ** 2).sum(axis=-1)
    return (distances.argmin(axis=1) == labels[half:]).mean()


def test_colour_does_not_tell_the_class(drawn):
    """Guessing gives 0.1; with 200 images, five standard deviations more are 0.21."""
    assert nearest_mean_accuracy(drawn.images.mean(axis=(2, 3)), drawn.labels) < 0.21
    assert nearest_mean_accuracy(drawn.images.reshape(400, -1).astype(float), drawn.labels) < 0.4


def test_bars_vary_downwards_and_columns_sideways(drawn):
    """The outline is what its class says, for two classes where that is easily measured."""
    images = drawn.images.mean(axis=1)  # (N, H, W)
    down, across = (np.abs(np.diff(images, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2))
    for name, larger, smaller in (("bars", down, across), ("columns", across, down)):
        chosen = drawn.labels == shape_images.CLASSES.index(name)
        assert (larger[chosen] > smaller[chosen]).mean() > 0.9


def test_registered_sets(monkeypatch, tmp_path):
    monkeypatch.setenv("ISO_D2_CACHE", str(tmp_path))
    monkeypatch.setattr(shape_images, "SPLITS", {"train": (12, 0), "test": (7, 1)})
    for split, count in (("train", 12), ("test", 7)):
        metadata = MetadataCatalog.get(f"shapes_cls_{split}")
        assert metadata.evaluator_type == "classification"
        assert metadata.thing_classes[:3] == ["disc", "ring", "square"]
        dicts = DatasetCatalog.get(f"shapes_cls_{split}")
        assert [record["label"] for record in dicts] == [i % 10 for i in range(count)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shapes_cls_test-v2", "shapes_cls_train-v2"]
    images = [MetadataCatalog.get(f"shapes_cls_{split}").load_arrays().images for split in ("train", "test")]
    assert not {image.tobytes() for image in images[0]} & {image.tobytes() for image in images[1]}


def test_the_cache_is_used_and_a_damaged_one_named(monkeypatch, tmp_path):
    monkeypatch.setenv("ISO_D2_CACHE", str(tmp_path))
    monkeypatch.setattr(shape_images, "SPLITS", {"test": (3, 1)})
    DatasetCatalog.get("shapes_cls_test")
    monkeypatch.setattr(shape_images, "draw_shapes", lambda *args: pytest.fail("drawn twice"))
    assert len(DatasetCatalog.get("shapes_cls_test")) == 3
    (tmp_path / "shapes_cls_test-v2" / "images.npz").write_bytes(b"PK")
    with pytest.raises(
        ValueError, match=r"cannot read .*shapes_cls_test-v2 .* Remove it: it is then made again"
    ):
        DatasetCatalog.get("shapes_cls_test")
