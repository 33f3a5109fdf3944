import engine_toys
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from iso_d2.data import AlbumentationsMapper, build_transforms
from iso_d2.evaluation import draw_model_input


@pytest.fixture
def visualize_data(load_tool):
    return load_tool("visualize_data")


def arguments(tmp_path):
    return ["--config-file", str(tmp_path / "toy.yaml"), "--output", str(tmp_path / "out")]


def test_pictures_show_the_augmented_image(visualize_data, toy_data, tmp_path, capsys):
    cfg = engine_toys.toy_config(tmp_path / "output", "INPUT.MAPPER", "albumentations")
    cfg.INPUT.ALBUMENTATIONS.TRAIN = [["Resize", {"height": 40, "width": 60}]]
    (tmp_path / "toy.yaml").write_text(cfg.dump())
    arguments = [
        "--config-file",
        str(tmp_path / "toy.yaml"),
        "--output",
        str(tmp_path / "out"),
        "--number",
        "3",
    ]
    visualize_data.main(arguments)
    assert "3 of 4 images of toy_train" in capsys.readouterr().out
    files = sorted((tmp_path / "out").iterdir())
    assert [f.name for f in files] == [f"000{i}_toy_train_{i}.png" for i in range(3)]
    assert Image.open(files[0]).size == (60, 40)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["--dataset", "toy_tset"], "'toy_tset' is not registered"),
        (["INPUT.MAPPER", "mine"], r"INPUT\.MAPPER must be one of"),
        (["DATASETS.TRAIN", "()"], r"DATASETS\.TRAIN is empty"),
    ],
)
def test_errors(visualize_data, toy_data, tmp_path, opts, message):
    (tmp_path / "toy.yaml").write_text(engine_toys.toy_config(tmp_path).dump())
    with pytest.raises(SystemExit, match=message):
        visualize_data.main(
            ["--config-file", str(tmp_path / "toy.yaml"), "--output", str(tmp_path / "out"), *opts]
        )


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_boxes_masks_and_colours_are_drawn_where_they_are(image_format):
    record = DatasetCatalog.get("shapes_train")[0]
    mapper = AlbumentationsMapper(
        True, augmentations=build_transforms([]), image_format=image_format, use_instance_mask=True
    )
    mapped = mapper(record)
    del mapped["sem_seg"]
    drawn = draw_model_input(mapped, MetadataCatalog.get("shapes_train"), image_format).astype(int)
    original = np.asarray(Image.open(record["file_name"])).astype(int)
    changed = np.abs(drawn - original).max(axis=2) > 8
    masks = mapped["instances"].gt_masks.tensor.any(dim=0).numpy()
    assert changed[masks].mean() > 0.5
    assert changed.mean() < 0.6


def test_the_split_of_the_config_is_that_of_a_named_data_set(visualize_data, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: asked.append(name) or [])
    arguments = ["--config-file", "", "--output", str(tmp_path), "--dataset", "lgg_train"]
    visualize_data.main([*arguments, "DATASETS.LGG_SPLIT", "image"])
    assert asked == ["lgg_image_train"]
    assert "0 of 0 images of lgg_image_train" in capsys.readouterr().out
