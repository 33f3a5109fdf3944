"""Albumentations transforms from the lists of INPUT.ALBUMENTATIONS."""

import difflib
import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for a newer version at import
import albumentations as A

# What predictions can be brought back from, since Detectron2 only rescales them to the original size
RESIZES = (A.Resize, A.LongestMaxSize, A.SmallestMaxSize, A.NoOp)


def build_transforms(entries):
    """Make Albumentations transforms from their names.

    Args:
        entries (list): ``[name, keyword arguments]`` each, as in ``INPUT.ALBUMENTATIONS.TRAIN``.

    Returns:
        list[albumentations.BasicTransform]

    Raises:
        ValueError: no transform has that name, or it does not take these arguments.
    """
    return [_build_transform(entry) for entry in entries]


def _build_transform(entry):
    if not isinstance(entry, list | tuple) or [type(part) for part in entry] != [str, dict]:
        raise ValueError(
            f"an entry of INPUT.ALBUMENTATIONS must be [name, {{argument: value}}], got {entry!r}"
        )
    name, arguments = entry
    transform = OWN.get(name) or getattr(A, name, None)
    if not (isinstance(transform, type) and issubclass(transform, A.BasicTransform)):
        close = difflib.get_close_matches(name, [n for n in dir(A) if n[0].isupper()])
        raise ValueError(
            f"INPUT.ALBUMENTATIONS: Albumentations {A.__version__} has no transform named {name!r}. "
            f"Close names: {', '.join(close) or 'none'}."
        )
    try:
        transform = transform(**arguments)
        if transform.invalid_args:  # of which Albumentations only warns
            raise TypeError(f"it has no argument {', '.join(transform.invalid_args)}")
        return transform
    except (TypeError, ValueError) as error:
        raise ValueError(f"INPUT.ALBUMENTATIONS: {name} cannot be made with {arguments}: {error}") from error


class MissingSequences(A.ImageOnlyTransform):
    """Put one channel in the place of others, as sets of MRI do where a sequence of a patient is missing.

    Albumentations has no such transform. A random subset of the other channels, not empty, gets the source.

    Args:
        source (int): the channel that is always there, from 0; of the LGG set 1, FLAIR.
        p (float): share of the images that are changed.

    Raises:
        ValueError: source is no such number; in a call, the image has no such channel or no other.
    """

    def __init__(self, source=1, p=0.5):
        super().__init__(p=p)
        if type(source) is not int or source < 0:
            raise ValueError(f"source must be the number of a channel, from 0, got {source!r}")
        self.source = source

    def get_params_dependent_on_data(self, params, data):
        channels = params["shape"][2] if len(params["shape"]) == 3 else 1
        if channels < max(2, self.source + 1):
            raise ValueError(
                f"MissingSequences with source {self.source} needs images with that channel and another, "
                f"got {channels} channel{'s' if channels > 1 else ''}"
            )
        others = [channel for channel in range(channels) if channel != self.source]
        return {"missing": self.py_random.sample(others, self.py_random.randint(1, len(others)))}

    def apply(self, img, missing, **params):
        image = img.copy()
        image[..., missing] = img[..., self.source, None]
        return image


OWN = {"MissingSequences": MissingSequences}


def compose(transforms, with_boxes):
    """albumentations.Compose of the transforms; with_boxes, it takes boxes XYXY in pixels too."""
    # A box that sticks out by rounding would raise without clip. Without a transform it warns of boxes.
    boxes = A.BboxParams(format="pascal_voc", clip=True, filter_invalid_bboxes=True) if with_boxes else None
    return A.Compose(transforms or [A.NoOp()], bbox_params=boxes)


def check_test_transforms(transforms):
    """Refuse transforms of whose output predictions cannot be brought back to the original image.

    Raises:
        ValueError: one changes more than pixel values or the size of the whole image.
    """
    for transform in transforms:
        if not isinstance(transform, (A.ImageOnlyTransform, *RESIZES)):
            raise ValueError(
                "INPUT.ALBUMENTATIONS.TEST: predictions cannot be brought back from "
                f"{type(transform).__name__}. It may hold {', '.join(t.__name__ for t in RESIZES)} and "
                "transforms of pixel values only."
            )
