"""Importing this fails without Detectron2, and the error says how to get it."""

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ImportError(
        "All of iso_d2 but iso_d2.isometry needs Detectron2, which is not installed. In a checkout of "
        "iso_d2, `make setup` installs it; elsewhere, after torch: "
        "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git"
    ) from error
