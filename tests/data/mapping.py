"""A mapper and records for it, as the tests of the mapper use them."""

from detectron2.config import get_cfg
from detectron2.structures import BoxMode

from iso_d2.config import add_iso_config
from iso_d2.data import AlbumentationsMapper, build_transforms

# Nearest pixel, so that an edge in the image stays where it is
STRETCH = ["Resize", {"height": 100, "width": 300, "interpolation": 0}]
FLIP = ["HorizontalFlip", {"p": 1.0}]


def rectangle(x, y, width, height):
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def annotation(box, category=0, **more):
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category, "iscrowd": 0, **more}


def mapper(*entries, is_train=True, **options):
    options = {"image_format": "RGB", "use_instance_mask": True, **options}
    return AlbumentationsMapper(is_train, augmentations=build_transforms(entries), **options)


def config(train=(STRETCH,), test=(STRETCH,)):
    cfg = get_cfg()
    add_iso_config(cfg)
    cfg.INPUT.ALBUMENTATIONS.TRAIN = list(train)
    cfg.INPUT.ALBUMENTATIONS.TEST = list(test)
    return cfg
