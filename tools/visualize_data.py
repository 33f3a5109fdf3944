"""Draw what the mapper feeds the model: images after augmentation, with their boxes, labels and masks.

python tools/visualize_data.py --config-file FILE --output DIR [--dataset NAME] [--number N] [KEY VALUE ...]
"""

import argparse
import sys
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger
from PIL import Image

from iso_d2.engine.setup import load_config
from iso_d2.engine.trainer import build_mapper
from iso_d2.evaluation import draw_model_input


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
        cfg = load_config(args.config_file, args.opts)
        name = args.dataset or cfg.DATASETS.TRAIN[0]
        mapper = build_mapper(cfg, is_train=True)
        records = DatasetCatalog.get(name)
    except (ValueError, KeyError, OSError) as error:
        sys.exit(f"error: {error}")
    args.output.mkdir(parents=True, exist_ok=True)
    for index, record in enumerate(records[: args.number]):
        mapped = mapper(record)
        if mapped is None:
            continue
        drawn = draw_model_input(mapped, MetadataCatalog.get(name), cfg.INPUT.FORMAT)
        Image.fromarray(drawn).save(args.output / f"{index:04d}_{Path(record['file_name']).stem}.png")
    print(f"{min(args.number, len(records))} of {len(records)} images of {name} in {args.output}")


if __name__ == "__main__":
    main()
