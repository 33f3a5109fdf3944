"""Files of each kind that iso_d2 reads, damaged at random, and whether what is read of them is right."""

import copy
import json
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import detection_utils
from PIL import Image

from iso_d2.data.arrays import SegmentedImages
from iso_d2.data.cifar.reading import CIFAR10, load_cifar
from iso_d2.data.coco.annotations import load_coco
from iso_d2.data.generated import shape_images
from iso_d2.data.lgg import list_slices
from iso_d2.data.lgg.patients import Patient
from iso_d2.data.lgg.preprocessing import Preprocessing
from iso_d2.data.lgg.slices import preprocess_slices
from iso_d2.data.mappers import build_mapper
from iso_d2.engine.checkpoint import IsoCheckpointer
from iso_d2.engine.setup import load_config
from iso_d2.files import read_image

ROOT = Path(__file__).parents[1]
ODD = (None, True, -1, 0, 1e308, float("nan"), float("inf"), 2**63, "", "a", "../../x", [], {}, [[]], [0, 0])
ODD += ({"a": 1},)


class Wrong(AssertionError):
    """What was read is not right."""


def damage_bytes(content, chance):
    """bytes, damaged in one of several ways."""
    content = bytearray(content)
    at = chance.randrange(len(content))
    way = chance.randrange(6)
    if way == 0:
        for _ in range(chance.randint(1, 8)):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif way == 1:
        del content[at:]
    elif way == 2:
        del content[at : at + chance.randint(1, 64)]
    elif way == 3:
        content[at:at] = chance.randbytes(chance.randint(1, 64))
    elif way == 4:
        content[at : at + 256] = bytes(len(content[at : at + 256]))
    else:
        content[:] = chance.randbytes(chance.randint(0, 64))
    return bytes(content)


def damage_tree(tree, chance):
    """Replace, drop or double one value of nested lists and dicts, in place; the root stays."""
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = chance.choice(list(keys))
        if isinstance(node[key], (dict, list)) and node[key] and chance.random() < 0.8:
            node = node[key]
            continue
        way = chance.randrange(4)
        if way == 0:
            del node[key]
        elif way == 1 and isinstance(node, list):
            node.append(node[key])
        else:
            node[key] = copy.deepcopy(chance.choice(ODD))  # else a tree may get into itself
        return


def check_image(folder, chance):
    pixels = np.random.default_rng(chance.randrange(9)).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    suffix = chance.choice(["png", "png", "jpg", "bmp", "tif", "webp"])
    file = folder / f"image.{suffix}"
    Image.fromarray(pixels).save(file)
    whole = detection_utils.read_image(str(file), "RGB")
    file.write_bytes(damage_bytes(file.read_bytes(), chance))
    found = read_image(file, "RGB")
    # of these formats PNG alone has checksums
    if suffix == "png" and not np.array_equal(found, whole):
        raise Wrong("other pixels")
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3:
        raise Wrong(f"{found.dtype} {found.shape}")


def check_json(folder, chance):
    images = [{"id": i, "file_name": f"{i}.png", "height": 30, "width": 40} for i in range(2)]
    for image in images:
        Image.new("RGB", (40, 30)).save(folder / image["file_name"])
    square = {
        "bbox": [4, 5, 10, 10],
        "area": 100,
        "segmentation": [[4, 5, 14, 5, 14, 15, 4, 15]],
        "iscrowd": 0,
    }
    tree = {
        "info": {},
        "images": images,
        "annotations": [
            {"id": i + 1, "image_id": i % 2, "category_id": 1 + i % 2, **square} for i in range(3)
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    file = folder / "set.json"
    if chance.random() < 0.8:
        for _ in range(chance.randint(1, 3)):
            damage_tree(tree, chance)
        file.write_text(json.dumps(tree))
    else:
        file.write_bytes(damage_bytes(json.dumps(tree).encode(), chance))
    for record in load_coco(f"fuzz{chance.random()}", file, folder):
        if Path(record["file_name"]).resolve().parent != folder.resolve():
            raise Wrong(f"an image of another folder, {record['file_name']}")
        for annotation in record["annotations"]:
            x, y, width, height = annotation["bbox"]
            if not (-2 <= x < 40 and -2 <= y < 30 and 0 < width <= 44 and 0 < height <= 34):
                raise Wrong(f"box {annotation['bbox']}")
            if annotation["category_id"] not in (0, 1):
                raise Wrong(f"class {annotation['category_id']}")


def check_config(folder, chance):
    source = chance.choice(sorted((ROOT / "configs" / "quick").glob("*.yaml"))).read_text()
    source = source.replace("_BASE_: ..", f"_BASE_: {ROOT}/configs")
    if chance.random() < 0.5:
        content = damage_bytes(source.encode(), chance)
    else:
        lines = source.splitlines()
        odd = chance.choice(
            ["  A: 1", "MODEL: 3", "!!python/object/apply:os.abort []", "- a", "SOLVER: {BASE_LR: x}"]
        )
        lines.insert(chance.randint(0, len(lines)), odd)
        content = "\n".join(lines).encode()
    file = folder / "config.yaml"
    file.write_bytes(content)
    default, found = load_config(), load_config(file)
    for key in ("SOLVER", "TEST", "ISO"):
        for name, value in found[key].items():
            wanted = default[key][name]
            same = isinstance(value, type(wanted)) or (type(value), type(wanted)) in _ALIKE
            if wanted is not None and not same:
                raise Wrong(f"{key}.{name} is {value!r}")


_ALIKE = {(list, tuple), (tuple, list), (int, float)}


def check_checkpoint(folder, chance):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(5, 6))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    file = folder / "model.pth"
    torch.save({"model": state, "iteration": 3}, file)
    file.write_bytes(damage_bytes(file.read_bytes(), chance))
    for parameter in model.parameters():
        parameter.data.zero_()
    IsoCheckpointer(model).load(str(file))
    if not all(torch.equal(value, state[key]) for key, value in model.state_dict().items()):
        raise Wrong("other weights")


def check_cifar(folder, chance):
    batches = folder / "cifar-10-batches-bin"
    batches.mkdir()
    whole = np.random.default_rng(1).integers(0, 10, (10_000, 3073), dtype=np.uint8)
    whole.tofile(batches / "test_batch.bin")
    content = damage_bytes((batches / "test_batch.bin").read_bytes(), chance)
    (batches / "test_batch.bin").write_bytes(content)
    found = load_cifar(CIFAR10, "test", folder)
    read = np.frombuffer(content, np.uint8).reshape(10_000, 3073)
    if found.labels.max() > 9 or not np.array_equal(found.labels, read[:, 0]):
        raise Wrong("labels")


def check_mask(folder, chance):
    """A polygon or RLE through a mapper; what pycocotools makes of polygons, and our own reading of RLE."""
    height, width = 30, 40
    Image.new("RGB", (width, height)).save(folder / "image.png")
    polygons = [[4.0, 5.0, 14.0, 5.0, 14.0, 15.0, 4.0, 15.0], [20.0, 2.0, 30.0, 2.0, 25.0, 20.0]]
    code = mask_util.merge(mask_util.frPyObjects(polygons, height, width))["counts"].decode()
    runs = [150, 40, 20, 20, 970]
    rle = [{"size": [height, width], "counts": counts} for counts in (code, runs)]
    damaged = copy.deepcopy(chance.choice([polygons, *rle]))
    holder = {"segmentation": damaged}
    if isinstance(damaged, dict) and damaged["counts"] == code and chance.random() < 0.5:
        damaged["counts"] = damage_bytes(code.encode(), chance).decode("latin1")
    else:
        damage_tree(holder, chance)
    square = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 2, 26, 18], "area": 100, "iscrowd": 0}
    tree = {
        "info": {},
        "images": [{"id": 1, "file_name": "image.png", "height": height, "width": width}],
        "annotations": [square | holder],
        "categories": [{"id": 1, "name": "a"}],
    }
    (folder / "set.json").write_text(json.dumps(tree))
    (record,) = load_coco(f"fuzz{chance.random()}", folder / "set.json", folder)
    options = "INPUT.MIN_SIZE_TRAIN (30,) INPUT.RANDOM_FLIP none INPUT.MASK_FORMAT bitmask"
    name = chance.choice(["albumentations", "detectron2"])
    more = ["INPUT.MAPPER", name, "INPUT.ALBUMENTATIONS.TRAIN", "[]", "MODEL.MASK_ON", True]
    mapper = build_mapper(load_config("", [*options.split(), *more]), is_train=True)
    masks = mapper(record)["instances"].get("gt_masks").tensor.numpy() if record["annotations"] else []
    for mask in masks:
        if not np.array_equal(mask, _drawn(holder["segmentation"], height, width)):
            raise Wrong(f"another mask of {holder['segmentation']}")


def _drawn(segmentation, height, width):
    """bool (H, W): a segmentation by other code than the mappers'."""
    if isinstance(segmentation, list):
        # Detectron2 leaves out other polygons
        whole = [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]
        return mask_util.decode(mask_util.merge(mask_util.frPyObjects(whole, height, width))).astype(bool)
    counts = segmentation["counts"]
    if isinstance(counts, str):
        return mask_util.decode(segmentation).astype(bool)
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(width, height).T


def check_lgg(folder, chance):
    """Slices and masks as LGG has them, or the arrays in the cache that are made of them."""
    name, patient = "TCGA_X", Patient(index=0, slices=3, in_val=False, val_slices=frozenset())
    root, cache = folder / "kaggle_3m", folder / "cache"
    (root / name).mkdir(parents=True)
    cache.mkdir()
    for number in range(1, 4):
        image, mask = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8)
        image[5:35, 10:30] = 100, 60 + number, 80
        mask[10 : 10 + 4 * number, 12:20] = 255
        for array, end in ((image, ""), (mask, "_mask")):
            Image.fromarray(array).save(root / name / f"{name}_{number}{end}.tif")

    def preprocessed():
        return preprocess_slices("lgg", root, list_slices(root, {name: patient}), Preprocessing(size=32))

    whole = preprocessed()
    if chance.random() < 0.7:
        hit = chance.randint(1, 3)
        file = root / name / f"{name}_{hit}{chance.choice(['', '_mask'])}.tif"
        way = chance.randrange(6)
        if way == 0:
            file.unlink()
        elif way == 1:
            file.rename(file.with_stem(f"{file.stem}x"))
        else:
            file.write_bytes(damage_bytes(file.read_bytes(), chance))
        found = preprocessed()
    else:
        whole.save(cache)
        file, hit = cache / chance.choice(["images.npy", "labels.npy", "records.json"]), None
        file.write_bytes(damage_bytes(file.read_bytes(), chance))
        found = SegmentedImages.load(cache, root)
    if found.images.shape != (3, 3, 32, 32) or found.images.dtype != np.uint8 or len(found.records) != 3:
        raise Wrong(f"{found.images.dtype} {found.images.shape}, {len(found.records)} records")
    # neither TIFF nor .npy has checksums
    if hit and found.labels.max() > 1:
        raise Wrong("labels")
    for index in {0, 1, 2} - {hit - 1} if hit else ():
        if not all(
            np.array_equal(vars(found)[k][index], vars(whole)[k][index]) for k in ("images", "labels")
        ):
            raise Wrong(f"slice {index + 1}, when {hit} was damaged")


def check_npz(folder, chance):
    with (
        mock.patch.dict(os.environ, ISO_D2_CACHE=str(folder)),
        mock.patch.dict(shape_images.SPLITS, test=(4, 1)),
    ):
        whole = shape_images._load("test")
        (file,) = folder.glob("*/images.npz")
        file.write_bytes(damage_bytes(file.read_bytes(), chance))
        found = shape_images._load("test")
    if not all(np.array_equal(value, vars(whole)[key]) for key, value in vars(found).items()):
        raise Wrong("other arrays")


KINDS = {
    "image": check_image,
    "json": check_json,
    "config": check_config,
    "checkpoint": check_checkpoint,
    "cifar": check_cifar,
    "mask": check_mask,
    "lgg": check_lgg,
    "npz": check_npz,
}
