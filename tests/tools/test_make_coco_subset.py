"""The command that makes the person/bicycle/car subset, up to reading it as a data set."""

import io
import json

import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

import iso_d2  # noqa: F401  registers the data sets


@pytest.fixture
def tool(load_tool):
    return load_tool("make_coco_subset")


@pytest.fixture
def coco(tmp_path):
    """A COCO file of 1,060 images of 8x8 pixels, and a folder with them; 5 are not needed."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    folder = tmp_path / "photos"
    folder.mkdir()
    images, annotations = [], []
    for number in range(1, 1061):
        name = f"{number:012}.jpg"
        (folder / name).write_bytes(buffer.getvalue())
        images.append({"id": number, "file_name": name, "width": 8, "height": 8})
        box = {"bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}
        annotations.append({"id": number, "image_id": number, "category_id": number % 3 + 1, **box})
    categories = [
        {"id": i, "name": name} for i, name in enumerate(["person", "bicycle", "car", "dog"], start=1)
    ]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    annotation_file = tmp_path / "instances_val2017.json"
    annotation_file.write_text(json.dumps(content))
    return annotation_file, folder


def test_what_it_makes_is_the_registered_data_set(tool, coco, tmp_path, monkeypatch, capsys):
    annotation_file, folder = coco
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    tool.main(["--annotations", str(annotation_file), "--images", str(folder)])
    made = tmp_path / "root" / "coco"
    assert capsys.readouterr().out == (
        f"training: {made}/annotations/instances_person_bicycle_car_train1000.json\n"
        f"test:     {made}/annotations/instances_person_bicycle_car_test55.json\n"
        f"images:   {made}/val2017\n"
    )
    train, test = DatasetCatalog.get("coco_pbc_train"), DatasetCatalog.get("coco_pbc_test")
    assert (len(train), len(test)) == (1000, 55)
    names = {record["file_name"] for record in train + test}
    assert len(names) == 1055
    assert names == {str(path) for path in (made / "val2017").iterdir()}


def test_the_large_test_set_is_registered_too(tool, coco, tmp_path, monkeypatch, capsys):
    annotation_file, folder = coco
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    tool.main(["--annotations", str(annotation_file), "--images", str(folder), "--num-large", "4"])
    large = tmp_path / "root" / "coco/annotations/instances_person_bicycle_car_testlarge.json"
    assert capsys.readouterr().out.splitlines()[3] == f"large:    {large}"
    ids = {
        name: {record["image_id"] for record in DatasetCatalog.get(f"coco_pbc_{name}")}
        for name in ("train", "test", "test_large")
    }
    assert [len(part) for part in ids.values()] == [1000, 55, 4]
    assert len(set.union(*ids.values())) == 1059


def test_a_failure_ends_with_the_command_that_continues(tool, coco, tmp_path, monkeypatch):
    annotation_file, folder = coco
    (folder / "000000000001.jpg").write_bytes(b"no image")
    arguments = [
        "--annotations",
        str(annotation_file),
        "--images",
        str(folder),
        "--output",
        str(tmp_path / "a b"),
    ]
    arguments += ["--num-train", "1059", "--num-test", "1"]
    monkeypatch.setattr("sys.argv", ["tools/make_coco_subset.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        tool.main()
    lines = stopped.value.code.splitlines()
    assert lines[0] == "error: 1 of 1060 images could not be had:"
    assert lines[1].startswith("  000000000001.jpg: not a readable image")
    assert lines[2] == (
        f"To continue: python tools/make_coco_subset.py --annotations {annotation_file} --images {folder} "
        f"--output '{tmp_path}/a b' --num-train 1059 --num-test 1"
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--annotations", "nowhere.json", "--image-folder", "val2017"], "nowhere.json does not exist"),
        (["--annotations", "nowhere.json"], "cannot tell the image folder"),
    ],
)
def test_bad_arguments_end_with_a_message(tool, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        tool.main(arguments)
    assert stopped.value.code.startswith("error: ") and message in stopped.value.code


def test_an_interruption_says_how_to_continue(tool, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "make_coco_subset", interrupted)
    with pytest.raises(
        SystemExit, match=r"^interrupted\. To continue: python .* --annotations x\.json --seed 3$"
    ):
        tool.main(["--annotations", "x.json", "--seed", "3"])
