"""Test images with the truth and what two networks predict, side by side."""

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.visualizer import Visualizer
from matplotlib.figure import Figure

from iso_d2.engine.predictor import Predictor
from iso_d2.evaluation.segmentation import read_mask, spread_out
from iso_d2.files import read_image

from .run import Run

ROWS = 4
# Detections with a lower score are not drawn; the first of these at which the networks find one an image
SCORES = (0.5, 0.3, 0.1, 0.05)
MAX_DETECTIONS = 8


def draw_mri(root, table, scale, records):
    """Validation slices with the truth and the prediction of each network (the report's figure 7).

    The slices are those with the most tumour of four patients, spread evenly over the set by its size. The
    checkpoints lie below `root`; `records` is scale -> experiment -> list of records. Returns a matplotlib
    Figure; a FileNotFoundError says that a checkpoint or the data set is not here.
    """
    runs = _runs(root, table.experiments, scale, records)
    predictors = {run.experiment.label: Predictor(_with_checkpoint(run)) for run in runs}
    config = runs[0].config
    largest = {}
    for record in DatasetCatalog.get(config.DATASETS.TEST[0]):
        pixels = int((record["sem_seg_array"] > 0).sum())
        if pixels > largest.get(record["patient"], (0,))[0]:
            largest[record["patient"]] = pixels, record
    ranked = sorted(largest.values(), key=lambda entry: -entry[0])
    rows = []
    for index in spread_out(len(ranked), ROWS):
        record = ranked[index][1]
        image, truth = read_image(record["file_name"], "RGB"), read_mask(record["mask_file_name"])
        panels = {"image": image, "truth": truth}
        for net, predict in predictors.items():
            probabilities = predict(record["file_name"])["sem_seg"][0].cpu().numpy()
            panels[net] = probabilities >= config.TEST.SEGMENTATION.THRESHOLD
        rows.append(panels)
    return _grid(rows, f"{table.title}: validation slices ({scale} scale)", width=2.0)


def draw_coco(root, table, scale, records):
    """Test images with the true boxes and the detections of two networks (the report's figure 8).

    As :func:`draw_mri`, for the report's own two, or the first R-ISONet and the first ResNet there are.
    """
    trained = [one for one in table.experiments if records[scale].get(one.name)]
    chosen = [next((one for one in trained if key in one.name), None) for key in ("risonet", "resnet")]
    runs = _runs(root, [one for one in chosen if one], scale, records)
    dataset = runs[0].config.DATASETS.TEST[0]
    images = sorted(DatasetCatalog.get(dataset), key=lambda record: record["image_id"])
    images = [images[index] for index in spread_out(len(images), ROWS)]
    detections = {}
    for run in runs:
        predict = Predictor(_with_checkpoint(run))
        detections[run.experiment.label] = [predict(record["file_name"])["instances"] for record in images]
    threshold = score_to_draw([i.scores.numpy() for found in detections.values() for i in found])
    metadata = MetadataCatalog.get(dataset)
    rows = []
    for index, record in enumerate(images):
        pixels = read_image(record["file_name"], "RGB")
        panels = {"truth": Visualizer(pixels, metadata).draw_dataset_dict(record).get_image()}
        for net, found in detections.items():
            instances = found[index][found[index].scores >= threshold][:MAX_DETECTIONS]
            panels[net] = Visualizer(pixels, metadata).draw_instance_predictions(instances).get_image()
        rows.append(panels)
    title = f"COCO test images, detections with a score of at least {threshold:g} ({scale} scale)"
    return _grid(rows, title, width=3.2)


def score_to_draw(scores):
    """float: the highest of SCORES that lets one detection an image through, else the lowest."""
    every = np.concatenate(scores)
    return next((score for score in SCORES if (every >= score).sum() >= len(scores)), SCORES[-1])


def _runs(root, experiments, scale, records):
    """list[Run]: the first seed of each that was trained and did not diverge."""
    found = [(one, records[scale][one.name][0]) for one in experiments if records[scale].get(one.name)]
    runs = [Run(one, scale, record["seed"], root) for one, record in found if record["diverged_at"] is None]
    for run in runs:
        if not (root / run.folder / "model_final.pth").is_file():
            raise FileNotFoundError(f"{run.folder / 'model_final.pth'} is not here")
        if missing := run.obstacle():
            raise FileNotFoundError(missing)
    if not runs:
        raise FileNotFoundError("all of these trainings diverged")
    return runs


def _with_checkpoint(run):
    config = run.config.clone()
    config.MODEL.WEIGHTS = str(run.root / run.folder / "model_final.pth")
    return config


def _grid(rows, title, width):
    heights = [max(panel.shape[0] / panel.shape[1] for panel in panels.values()) for panels in rows]
    columns = len(rows[0])
    figure = Figure(figsize=(width * columns, width * sum(heights) + 0.8), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for axes, name in zip(grid[0], rows[0], strict=True):
        axes.set_title(name, fontsize="small")
    for line, panels in zip(grid, rows, strict=True):
        for axes, panel in zip(line, panels.values(), strict=True):
            axes.imshow(panel, cmap="gray", vmin=0, vmax=1 if panel.dtype == bool else 255)
            axes.set_axis_off()
    return figure


# ``samples`` of a table -> function that draws them
SAMPLES = {"mri": draw_mri, "coco": draw_coco}
