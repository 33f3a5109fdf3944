"""Draw what the mapper feeds the model: images after augmentation, with their boxes, labels and masks.

iso-d2 data show --config-file FILE --output DIR [--dataset NAME] [--number N] [KEY VALUE ...]
"""

import argparse
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger
from PIL import Image

from ..data.mappers import build_mapper
from ..engine.setup import load_config
from ..evaluation import draw_model_input
from . import fail


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="for the pictures")
    parser.add_argument("--dataset", metavar="NAME", help="default: the first of DATASETS.TRAIN")
    parser.add_argument("--number", type=int, default=16, metavar="N", help="how many images (16)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    setup_logger(name="iso_d2")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        draw(args)
    except (AssertionError, KeyError, OSError, ValueError) as error:
        fail(error)


def draw(args):
    dataset = ["DATASETS.TRAIN", (args.dataset,)] if args.dataset else []
    cfg = load_config(args.config_file, [*args.opts, *dataset])
    names = cfg.DATASETS.TRAIN
    if not names:
        raise ValueError("DATASETS.TRAIN is empty: name a data set with --dataset")
    mapper = build_mapper(cfg, is_train=True)
    records = DatasetCatalog.get(names[0])
    drawn = 0
    for record in records[: max(0, args.number)]:
        mapped = mapper(record)
        if mapped is not None:
            picture = draw_model_input(mapped, MetadataCatalog.get(names[0]), cfg.INPUT.FORMAT)
            name = Path(record.get("file_name") or str(record["image_id"])).stem
            path = args.output / f"{drawn:04d}_{name}.png"
            Image.fromarray(picture).save(path)
            drawn += 1
    print(f"{drawn} of {len(records)} images of {names[0]} in {args.output}")
