"""Trained networks as files of ONNX, TorchScript or torch.export.

ONNX and TorchScript files are traced with Detectron2's ``TracingAdapter``, as in its deployment tutorial
(https://detectron2.readthedocs.io/tutorials/deployment.html).
"""

import io
import json
import warnings
from pathlib import Path

import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN

from ..files import replacing
from ..modeling import UNetSegmentor
from ..provenance import versions
from .exported import KEY, SUFFIXES, ExportedModel, onnx_packages
from .predictor import Predictor, class_metadata

# Meta-architectures whose file takes a batch of images, and those whose file takes one image
BATCHED, SINGLE = ("ImageClassifier", "UNetSegmentor"), ("GeneralizedRCNN", "RetinaNet")
# of ONNX; RoIAlign needs 16 to compute what Detectron2 does
OPSET = 17
# between a file and the network, see `export_model`
TOLERANCE = 1e-3


def export_model(cfg, format, file):
    """Write the network of a checkpoint to a file that takes pixels and gives predictions.

    Scales are multiplied into the weights, and the file itself normalises the pixels. Under "iso_d2" its
    metadata hold JSON: what it takes and gives, the classes and the config, see docs/export.md. At the end
    the file is run on noise of another size than the network was traced with.

    Args:
        cfg (CfgNode): MODEL.WEIGHTS must name a checkpoint. The network runs on the CPU.
        format (str): "onnx", "torchscript" or "torch_export".
        file (str or Path): with the suffix of its format: .onnx, .ts or .pt2.

    Returns:
        tuple[dict, float or None]: the metadata; the largest difference that the run at the end found, in
        probabilities, scores, masks, and coordinates by the image's side. None: a detector that finds nothing
        in noise.

    Raises:
        FileNotFoundError: no such folder or checkpoint.
        ImportError: a package for ONNX is missing.
        ValueError: another format, suffix or meta-architecture; a checkpoint that does not fit; a network
            that the format has no operation for, or that gives something else in the file.
    """
    file = Path(file)
    _check(cfg, format, file)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.CHANNELS_LAST = "cpu", False
    model = Predictor(cfg).model
    about = _about(cfg, format, model)
    noise = _noise(about, 2, (2, 3))
    inputs = {"images": noise} if about["input"]["name"] == "images" else [{"image": noise}]
    adapter = TracingAdapter(model, inputs, _predictions).eval()
    try:
        with warnings.catch_warnings(), replacing(file) as unfinished:
            warnings.simplefilter("ignore")  # of tracing: conditions that become constants, deprecations
            outputs = adapter(noise)
            about["outputs"] = {
                name: [about["input"]["shape"][0] if "images" in inputs else "detections", *output.shape[1:]]
                for name, output in zip(adapter.outputs_schema.keys, outputs, strict=True)
            }
            if "probabilities" in about["outputs"]:
                about["outputs"]["probabilities"][2:] = ["height", "width"]
            WRITE[format](adapter, about, unfinished)
            return about, _difference(ExportedModel(unfinished, format), adapter)
    except (ImportError, OSError):
        raise
    except Exception as error:  # of torch, by format and fault
        raise ValueError(
            f"{cfg.MODEL.META_ARCHITECTURE} cannot be exported as {format}: an operation of its network "
            f"cannot be traced, or the format has none like it. Try another format. The cause: {error}"
        ) from error


def _check(cfg, format, file):
    if format not in SUFFIXES:
        raise ValueError(f"the format of an export must be one of {', '.join(SUFFIXES)}, got {format!r}")
    if file.suffix != SUFFIXES[format]:
        raise ValueError(f"a file of {format} must end in {SUFFIXES[format]}, got {file}")
    kind = cfg.MODEL.META_ARCHITECTURE
    if kind not in (*BATCHED, *SINGLE) or cfg.MODEL.KEYPOINT_ON:
        keypoints = " with keypoints (MODEL.KEYPOINT_ON)" if cfg.MODEL.KEYPOINT_ON else ""
        raise ValueError(f"{kind}{keypoints} cannot be exported, only {', '.join((*BATCHED, *SINGLE))}")
    if format == "torch_export" and kind in SINGLE:
        raise ValueError(
            f"{kind} cannot be exported as torch_export, whose tracer stops where the number of boxes "
            "decides what Detectron2 does next: take onnx or torchscript"
        )
    if not file.parent.is_dir():
        raise FileNotFoundError(f"Folder {str(file.parent.absolute())!r} does not exist: make it first")
    if format == "onnx":
        onnx_packages()


def _about(cfg, format, model):
    """The metadata of a file, all but its outputs."""
    batched = cfg.MODEL.META_ARCHITECTURE in BATCHED
    is_unet = isinstance(model, UNetSegmentor)
    channels = model.unet.in_channels if is_unet else len(model.pixel_mean)
    metadata = {} if is_unet else class_metadata(cfg)
    return {
        "versions": versions(),
        "meta_architecture": cfg.MODEL.META_ARCHITECTURE,
        "input": {
            "name": "images" if batched else "image",
            "shape": [*(["batch"] if batched else []), channels, "height", "width"],
            "dtype": "float32",
            "values": "0 to 255",
            "channels": cfg.INPUT.FORMAT,
            "multiple_of": 2 ** len(model.unet.ups) if is_unet and format == "torch_export" else 1,
        },
        "classes": metadata.get("thing_classes"),
        "category_ids": metadata.get("thing_dataset_id_to_contiguous_id"),
        "config": cfg.dump(),
    }


def _noise(about, batch, size):
    """Pixels for the input of a file."""
    shape = about["input"]["shape"]
    side = max(32, about["input"]["multiple_of"])
    noise = torch.rand(
        batch, shape[-3], *(side * n for n in size), generator=torch.Generator().manual_seed(0)
    )
    return 255 * (noise if len(shape) == 4 else noise[0])


def _predictions(model, inputs):
    """dict[str, Tensor]: what the file gives."""
    if isinstance(inputs, dict):
        return model(inputs)
    if isinstance(model, GeneralizedRCNN):
        # masks stay in their boxes, which Detectron2's post-processing pastes into the image
        instances = model.inference(inputs, do_postprocess=False)[0]
    else:
        instances = model(inputs)[0]["instances"]
    fields = instances.get_fields().items()
    return {name.removeprefix("pred_"): getattr(value, "tensor", value) for name, value in fields}


def _difference(exported, adapter):
    """float: the largest one between file and network on noise."""
    noise = _noise(exported.about, 3, (3, 2))
    found = exported.run(noise)
    expected = dict(zip(found, adapter(noise), strict=True))
    if "boxes" in found:
        return _difference_of_boxes(found, expected, max(noise.shape[-2:]))
    name = "scores" if "scores" in found else "probabilities"
    found, expected = found[name], expected[name]
    if found.shape != expected.shape:
        raise ValueError(f"{name} have the shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    difference = (found - expected).abs().max().item()
    return _checked(difference, name)


def _difference_of_boxes(found, expected, side):
    """The largest one in score, in coordinates by the image's side, and in masks, of boxes that correspond.

    Scores that are nearly equal may leave another box out, hence one in twenty may have none.
    """
    pairs = (found["boxes"][:, None] - expected["boxes"]).abs().amax(dim=2) / side
    pairs = torch.maximum(pairs, (found["scores"][:, None] - expected["scores"]).abs())
    pairs[found["classes"][:, None] != expected["classes"]] = torch.inf
    if not len(found["boxes"]) == len(expected["boxes"]) == 0:
        left_out = 1 + max(pairs.shape) // 20
        if min(pairs.shape) == 0 or abs(pairs.shape[0] - pairs.shape[1]) > left_out:
            raise ValueError(f"the file finds {pairs.shape[0]} boxes, the network {pairs.shape[1]}")
        differences, partners = pairs.min(dim=1)
        if "masks" in found:
            masks = (found["masks"] - expected["masks"][partners]).abs().flatten(1).amax(dim=1)
            differences = torch.maximum(differences, masks)
        kept = max(1, len(differences) - left_out)
        return _checked(differences.sort().values[kept - 1].item(), "boxes")
    return None


def _checked(difference, name):
    if not difference <= TOLERANCE:
        raise ValueError(
            f"for an image of another size {name} differ by {difference:.2g} from those of the network, in "
            "which the size of the image may decide what is computed"
        )
    return difference


def _write_onnx(adapter, about, file):
    onnx, _ = onnx_packages()
    shapes = {about["input"]["name"]: about["input"]["shape"], **about["outputs"]}
    axes = {k: {i: axis for i, axis in enumerate(v) if isinstance(axis, str)} for k, v in shapes.items()}
    (name, *outputs), buffer = shapes, io.BytesIO()
    options = {"input_names": [name], "output_names": outputs, "dynamic_axes": axes, "opset_version": OPSET}
    # the exporter through torch.export stops at the number of boxes
    torch.onnx.export(adapter, adapter.flattened_inputs, buffer, dynamo=False, **options)
    model = onnx.load_model_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, {KEY: json.dumps(about)})
    onnx.save(model, str(file))


def _write_torchscript(adapter, about, file):
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    torch.jit.save(traced, str(file), _extra_files={KEY: json.dumps(about)})


def _write_torch_export(adapter, about, file):
    axes = {
        i: torch.export.Dim.DYNAMIC for i, axis in enumerate(about["input"]["shape"]) if isinstance(axis, str)
    }
    program = torch.export.export(adapter, adapter.flattened_inputs, dynamic_shapes=((axes,),), strict=False)
    with open(file, "wb") as stream:
        torch.export.save(program, stream, extra_files={KEY: json.dumps(about)})


WRITE = {"onnx": _write_onnx, "torchscript": _write_torchscript, "torch_export": _write_torch_export}
