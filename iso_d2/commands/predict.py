"""Run a trained model on images.

A detector gives drawn detections and one COCO json. A segmentation model gives a mask and a drawing of each
image and, if the true masks lie beside the images of a folder (x_mask.tif for x.tif), the Dice of all
together. Of a NIfTI volume it gives the mask alone, on the same grid (x_mask.nii.gz for x.nii or x.nii.gz).
A classifier gives one json with the scores of all classes, the best first.

iso-d2 predict --model isounet-lgg-narrow --input IMAGE_OR_FOLDER [...] --output DIR
iso-d2 predict --config-file FILE --input IMAGE_OR_FOLDER [...] --output DIR \
    --opts MODEL.WEIGHTS output/quick/model_final.pth [KEY VALUE ...]
iso-d2 predict --folds OUTPUT_DIR_OF_FOLDS --input IMAGE_OR_FOLDER [...] --output DIR [--opts KEY VALUE ...]
iso-d2 predict --exported model.onnx --input IMAGE_OR_FOLDER [...] --output DIR [--opts KEY VALUE ...]
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
from detectron2.utils.logger import setup_logger
from PIL import Image
from tqdm import tqdm

from ..data.volumes import SUFFIXES, nibabel_package, read_volume
from ..engine.cross_validation import find_folds, load_ensemble
from ..engine.exported import ExportedModel
from ..engine.predictor import Predictor, by_class, class_metadata, coco_predictions
from ..engine.setup import load_config
from ..engine.trained import trained_config
from ..evaluation.masks import PredictedMasks, class_labels, is_mask
from ..evaluation.visualization import draw_detections
from ..files import IMAGE_SUFFIXES, BrokenImageError, read_image, write_atomically
from . import add_opts, fail

ACCEPTED = (*IMAGE_SUFFIXES, *SUFFIXES)


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", metavar="FILE", help="config of the training")
    source.add_argument(
        "--folds", metavar="DIR", help="OUTPUT_DIR of `iso-d2 folds`: the mean of its networks"
    )
    source.add_argument("--model", metavar="NAME", help="a trained network of iso_d2.list_models()")
    source.add_argument("--exported", metavar="FILE", help="a file of `iso-d2 export`, which has the config")
    parser.add_argument(
        "--input", required=True, nargs="+", type=Path, metavar="PATH", help="images, NIfTI volumes, folders"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the results")
    parser.add_argument(
        "--threshold",
        type=float,
        help="detections with a lower score are not drawn (0.5); pixels with a lower probability are not "
        "foreground (TEST.SEGMENTATION.THRESHOLD)",
    )
    add_opts(parser)
    return parser.parse_args(argv)


def find_images(paths):
    """The image files among `paths` and directly in the folders among them, sorted within each folder.

    Masks of other images are left out of folders.
    """
    files = []
    for path in paths:
        if path.is_dir():
            images = [f for f in path.iterdir() if f.name.lower().endswith(ACCEPTED) and f.name[0] != "."]
            images = [f for f in images if not is_mask(f)]
            files += sorted(images, key=by_number)
        elif path.is_file():
            files.append(path)
        else:
            sys.exit(f"error: {path} is neither a file nor a folder")
    if not files:
        sys.exit(f"error: no image ({', '.join(ACCEPTED)}) in {', '.join(map(str, paths))}")
    return files


def by_number(file):
    """Sorts x_2 before x_10."""
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def volume_masks(files, folder):
    """dict[Path, Path]: of each NIfTI volume among `files`, its mask in `folder`, which no other has."""
    masks = {}
    for file in files:
        if file.name.lower().endswith(SUFFIXES):
            name = re.sub(r"\.nii(\.gz)?$", "", file.name, flags=re.IGNORECASE)
            mask = folder / f"{name}_mask.nii.gz"
            if mask in masks.values():
                sys.exit(f"error: {mask} would be the mask of two volumes: predict them into two folders")
            if mask.exists() and mask.parent.samefile(file.parent):
                sys.exit(f"error: {mask} exists: remove it, or, if it is a true mask, take another --output")
            masks[file] = mask
    return masks


def predict_volume(predictor, file, mask, threshold):
    """Write the mask (Path) of a volume (Path).

    Returns:
        str: what it holds.
    """
    volume = read_volume(file)
    slices = tqdm(volume.slices, unit="slice", leave=False)
    labels = np.stack([class_labels(predictor(pixels)["sem_seg"], threshold) for pixels in slices])
    volume.write_mask(labels, mask)
    found = labels.any(axis=(1, 2)).sum()
    return f"{mask}: foreground in {found} of {len(labels)} slices, {np.count_nonzero(labels)} voxels"


def main(argv=None):
    args = parse_args(argv)
    if args.threshold is not None and math.isnan(args.threshold):
        sys.exit("error: --threshold must be a number, got nan")
    setup_logger(name="iso_d2")
    setup_logger(name="fvcore")
    files = find_images(args.input)
    volumes = volume_masks(files, args.output)
    try:
        if volumes:
            nibabel_package()
        args.output.mkdir(parents=True, exist_ok=True)
        if args.exported:
            model = ExportedModel(args.exported)
            cfg = model.config(args.opts)
        elif args.folds:
            config_file, weights = find_folds(args.folds)
            cfg = load_config(config_file, args.opts)
            model = load_ensemble(cfg, weights)
        else:
            read, model = trained_config if args.model else load_config, None
            cfg = read(args.model or args.config_file, args.opts)
        predictor = Predictor(cfg, model)
    except (AssertionError, ImportError, KeyError, OSError, ValueError) as error:
        fail(error)
    has_masks = cfg.MODEL.META_ARCHITECTURE in ("UNetSegmentor", "SemanticSegmentor")
    if args.threshold is None:
        args.threshold = cfg.TEST.SEGMENTATION.THRESHOLD if has_masks else 0.5
    masks = PredictedMasks(args.output, args.threshold)
    metadata = None if has_masks else class_metadata(cfg)
    if volumes and not (has_masks and cfg.INPUT.MAPPER == "albumentations"):
        sys.exit(
            f"error: {next(iter(volumes))} is a volume, which needs a segmentation model and INPUT.MAPPER "
            f"albumentations, got {cfg.MODEL.META_ARCHITECTURE} and {cfg.INPUT.MAPPER}"
        )

    predictions, scores, broken, written = [], {}, [], []
    for file in tqdm(files, unit="image"):
        try:
            if file in volumes:
                written.append(predict_volume(predictor, file, volumes[file], args.threshold))
                continue
            output = predictor(str(file))
            if has_masks:
                masks.add(file, output["sem_seg"])
                continue
        except (BrokenImageError, ValueError) as error:
            broken.append(str(error))
            if file not in volumes:
                masks.skip(file)
            continue
        if "scores" in output:
            scores[str(file)] = by_class(output["scores"].tolist(), metadata)
            continue
        if "instances" not in output:
            sys.exit(
                f"error: {cfg.MODEL.META_ARCHITECTURE} has {', '.join(output)}, not boxes, masks or scores"
            )
        instances = output["instances"]
        predictions.append((str(file), instances))
        drawn = draw_detections(
            read_image(file, "RGB"), instances[instances.scores >= args.threshold], metadata
        )
        Image.fromarray(drawn).save(args.output / f"{len(predictions):04d}_{file.stem}.png")
    if has_masks:
        print(f"masks of {masks.number + len(written)} images in {args.output}", *written, sep="\n")
        for folder, dice in masks.volume_dice().items():
            print(f"{folder}: Dice of the volume {dice:.1f} %")
    elif cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
        write_atomically(args.output / "scores.json", json.dumps(scores, indent=1))
        print(f"scores of {len(scores)} images in {args.output / 'scores.json'}")
    else:
        document = coco_predictions(predictions, metadata)
        write_atomically(args.output / "predictions.json", json.dumps(document))
        print(f"{len(document['annotations'])} detections on {len(predictions)} images in {args.output}")
    if broken:
        sys.exit("\n".join([f"error: {len(broken)} files could not be read:", *broken]))
