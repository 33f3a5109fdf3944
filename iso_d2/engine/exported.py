"""A network in a file of ``iso-d2 export``, in place of the model that it was."""

import json
import tempfile
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from ..modeling.segmentor import to_original
from .setup import load_config

SUFFIXES = {"onnx": ".onnx", "torchscript": ".ts", "torch_export": ".pt2"}
# where a file holds, as JSON, what it is
KEY = "iso_d2"


class ExportedModel:
    """A network in a file of :func:`~iso_d2.engine.export.export_model`, called as the model that it was.

    Args:
        file (str or Path): with the suffix of its format.
        format (str or None): where the suffix does not say it.

    Attributes:
        about (dict): the metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a package for ONNX is missing.
        ValueError: no file of :func:`~iso_d2.engine.export.export_model`.
    """

    def __init__(self, file, format=None):
        self.file = Path(file)
        formats = {suffix: name for name, suffix in SUFFIXES.items()}
        format = format or formats.get(self.file.suffix)
        if format is None:
            raise ValueError(
                f"{file} is no exported network by its suffix ({', '.join(formats)}). A checkpoint of a "
                "training goes into MODEL.WEIGHTS; `iso-d2 export` makes an exported network of it"
            )
        if not self.file.is_file():
            raise FileNotFoundError(f"Exported network {str(self.file.absolute())!r} does not exist")
        try:
            self._run, text = READ[format](str(self.file))
            self.about = json.loads(text or "null")
        except ImportError:
            raise
        except Exception as error:  # of torch and onnxruntime, by format and fault
            raise ValueError(f"{file} cannot be read as {format}: is it whole? The cause: {error}") from error
        if self.about is None:
            raise ValueError(f"{file} lacks the metadata {KEY!r}: `iso-d2 export` did not write it")

    def config(self, opts=()):
        """The config that the network was exported with; its data set gets the names of its classes.

        Args:
            opts (sequence): keys and values in turn that change it.

        Returns:
            CfgNode: as of :func:`~iso_d2.engine.setup.load_config`, which says what this raises.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            file.write(self.about["config"])
            file.flush()
            cfg = load_config(file.name, opts)
            axes = load_config(file.name).TEST.MIRROR_AXES
        if list(cfg.TEST.MIRROR_AXES) != list(axes):
            raise ValueError(
                f"TEST.MIRROR_AXES {cfg.TEST.MIRROR_AXES}: {self.file} was exported with {axes}, which are "
                "part of the network. Export it again with other ones"
            )
        if cfg.DATASETS.TEST and self.about["classes"]:
            metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
            if metadata.get("thing_classes") is None:
                metadata.thing_classes = self.about["classes"]
                ids = self.about.get("category_ids") or {}
                if ids:
                    metadata.thing_dataset_id_to_contiguous_id = {int(k): v for k, v in ids.items()}
        return cfg

    @torch.no_grad()
    def run(self, images):
        """The outputs of the file.

        Args:
            images (Tensor): float32, of the shape in ``about["input"]``, pixels of 0 to 255.

        Returns:
            dict[str, Tensor]: by name, as in ``about["outputs"]``.

        Raises:
            ValueError: images of another size than the file takes.
        """
        multiple = self.about["input"]["multiple_of"]
        height, width = images.shape[-2:]
        if height % multiple or width % multiple:
            raise ValueError(
                f"{self.file} takes heights and widths that are multiples of {multiple}, got an image of "
                f"{height} x {width}: resize or crop it in INPUT.ALBUMENTATIONS.TEST, or export to ONNX or "
                "TorchScript, which takes any size"
            )
        outputs = (torch.as_tensor(output) for output in self._run(images))
        return dict(zip(self.about["outputs"], outputs, strict=True))

    def __call__(self, batched_inputs):
        """Predictions for each of Detectron2's dataset dicts, in the form of the meta-architecture."""
        return [self._prediction(x, x["image"].float()) for x in batched_inputs]

    def _prediction(self, dataset_dict, image):
        if self.about["input"]["name"] == "images":
            output = {name: value[0] for name, value in self.run(image[None]).items()}
            if "probabilities" in output:
                output["sem_seg"] = to_original(output["probabilities"], dataset_dict)
            return output
        output = self.run(image)
        instances = Instances(tuple(image.shape[-2:]))
        instances.pred_boxes = Boxes(output.pop("boxes"))
        instances.scores = output.pop("scores")
        for name, value in output.items():
            instances.set(f"pred_{name}", value)
        height, width = image.shape[-2:]
        size = dataset_dict.get("height", height), dataset_dict.get("width", width)
        return {"instances": detector_postprocess(instances, *size)}


def onnx_packages():
    """tuple: the modules onnx and onnxruntime.

    Raises:
        ImportError: one is missing.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"ONNX files need more packages ({error}): pip install iso_d2[export]") from error
    return onnx, onnxruntime


def _read_onnx(file):
    _, onnxruntime = onnx_packages()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    return lambda images: session.run(None, {name: images.numpy()}), text


def _read_torchscript(file):
    extra = {KEY: ""}
    return torch.jit.load(file, map_location="cpu", _extra_files=extra), extra[KEY]


def _read_torch_export(file):
    extra = {KEY: ""}
    with open(file, "rb") as stream:  # by name it takes only what ends in .pt2
        return torch.export.load(stream, extra_files=extra).module(), extra[KEY]


READ = {"onnx": _read_onnx, "torchscript": _read_torchscript, "torch_export": _read_torch_export}
