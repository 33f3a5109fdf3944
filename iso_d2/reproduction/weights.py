"""The backbone of a trained classifier, for detectors to start from."""

import torch


def write_backbone(checkpoint, destination):
    """Write the backbone's weights of an ImageClassifier as a checkpoint that fits under an FPN, too.

    Args:
        checkpoint (Path): Detectron2's, of an ImageClassifier over any backbone.
        destination (Path): the file to write.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    prefix = "backbone."
    backbone = {
        name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)
    }
    backbone = {name: tensor for name, tensor in backbone.items() if not name.startswith("linear.")}
    # With these two Detectron2 matches by the ends of the names, whatever comes before them.
    content = {"model": backbone, "__author__": "iso_d2", "matching_heuristics": True}
    torch.save(content, destination)
