"""Make the person/bicycle/car subset (or another one) from an official COCO annotation file.

Only the needed images are downloaded. Interrupted, it continues when it is called again. Example:

    iso-d2 data coco --annotations instances_val2017.json
"""

import argparse
import sys

from ..data.catalog import dataset_root
from ..data.coco.subset_maker import make_coco_subset
from . import as_typed


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", required=True, metavar="FILE", help="official COCO instances file")
    parser.add_argument("--classes", nargs="+", default=["person", "bicycle", "car"], metavar="NAME")
    parser.add_argument("--num-train", type=int, default=1000, metavar="N", help="training images (1000)")
    parser.add_argument("--num-test", type=int, default=55, metavar="N", help="test images (55)")
    parser.add_argument(
        "--num-large",
        type=int,
        default=0,
        metavar="N",
        help="further images for a large test set, coco_pbc_test_large (0; val2017 has 1834)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed chooses other images (0)")
    parser.add_argument(
        "--output",
        default=dataset_root(),
        metavar="ROOT",
        help="data set root ($DETECTRON2_DATASETS or datasets)",
    )
    parser.add_argument(
        "--image-folder", metavar="NAME", help="in ROOT/coco; default: as in instances_NAME.json (val2017)"
    )
    parser.add_argument("--images", metavar="DIR", help="copy the images from DIR and download nothing")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    try:
        train_file, test_file, images, *large = make_coco_subset(
            args.annotations,
            args.output,
            args.classes,
            args.num_train,
            args.num_test,
            seed=args.seed,
            image_folder=args.image_folder,
            source=args.images,
            num_large=args.num_large,
        )
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}\nTo continue: {as_typed(argv)}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted. To continue: {as_typed(argv)}")
    print(f"training: {train_file}\ntest:     {test_file}\nimages:   {images}")
    for file in large:
        print(f"large:    {file}")
