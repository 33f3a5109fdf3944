import numpy as np
import pytest
from mapping import FLIP, STRETCH, config, mapper

from iso_d2.data import AlbumentationsMapper, build_transforms
from iso_d2.data.transforms import compose


@pytest.mark.parametrize("name", ["Resise", "__version__", "Compose", "BboxParams"])
def test_unknown_transform(name):
    with pytest.raises(ValueError, match=f"has no transform named '{name}'. Close names: ") as error:
        AlbumentationsMapper(config(train=[[name, {}]]), is_train=True)
    assert name != "Resise" or "Resize" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"height": 5, "width": 5, "colour": "red"}, "it has no argument colour"),
        ({"height": -5, "width": 5}, "height"),
        ({"height": 5}, "width"),
    ],
)
def test_arguments_that_a_transform_does_not_take(arguments, complaint):
    with pytest.raises(
        ValueError, match=rf"INPUT.ALBUMENTATIONS: Resize cannot be made with .*[\s\S]*{complaint}"
    ):
        build_transforms([["Resize", arguments]])


@pytest.mark.parametrize("name", ["MedianBlur", "RandomRotate90", "ToGray"])
def test_transforms_without_arguments(record, name):
    assert mapper([name, {"p": 1.0}])(record)["image"].shape[0] == 3


@pytest.mark.parametrize("entry", ["Resize", 5, ["Resize"], ["Resize", [5, 5]], [5, {}]])
def test_malformed_entry(entry):
    with pytest.raises(ValueError, match=r"must be \[name, \{argument: value\}\], got"):
        build_transforms([entry])


def test_inference_refuses_what_predictions_cannot_be_brought_back_from():
    with pytest.raises(
        ValueError, match=r"ALBUMENTATIONS.TEST: .* brought back from HorizontalFlip. It may hold Resize"
    ):
        AlbumentationsMapper(config(test=[FLIP]), is_train=False)
    AlbumentationsMapper(config(test=[STRETCH, ["CLAHE", {}]]), is_train=False)


def test_missing_sequences_are_replaced_by_the_one_that_is_there():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    pipeline = compose(build_transforms([["MissingSequences", {"source": 1, "p": 1.0}]]), with_boxes=False)
    found = set()
    for _ in range(60):
        out = pipeline(image=image)["image"]
        replaced = tuple(c for c in (0, 2) if (out[..., c] == image[..., 1]).all())
        kept = [c for c in range(3) if c not in replaced]
        assert (out[..., kept] == image[..., kept]).all()
        found.add(replaced)
    assert found == {(0,), (2,), (0, 2)}
    assert (image == np.arange(24).reshape(2, 4, 3)).all()
    for shape, text in (
        ((2, 4), "got 1 channel"),
        ((2, 4, 1), "got 1 channel"),
        ((2, 4, 2), "got 2 channels"),
    ):
        need = compose(build_transforms([["MissingSequences", {"source": 2, "p": 1.0}]]), with_boxes=False)
        with pytest.raises(ValueError, match=text):
            need(image=np.zeros(shape, np.uint8))
    for source in (-1, "1", True):
        with pytest.raises(ValueError, match=r"MissingSequences cannot be made with .* number of a channel"):
            build_transforms([["MissingSequences", {"source": source}]])
    never = compose(build_transforms([["MissingSequences", {"p": 0.0}]]), with_boxes=False)
    assert (never(image=image)["image"] == image).all()
