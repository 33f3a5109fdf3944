import pytest
from mapping import FLIP, STRETCH, config, mapper

from iso_d2.data import AlbumentationsMapper, build_transforms


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
