import engine_toys
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from iso_d2.data import phantoms
from iso_d2.engine.predictor import Predictor
from iso_d2.engine.setup import load_config

UNET = ["MODEL.META_ARCHITECTURE", "UNetSegmentor", "MODEL.UNET.BASE_CHANNELS", "4", "MODEL.UNET.DEPTH", "3"]
UNET += ["DATASETS.TEST", "('phantom_test',)", "INPUT.FORMAT", "RGB", "INPUT.ALBUMENTATIONS.TEST", "[]"]


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of a small UNet as it starts."""
    torch.manual_seed(0)
    torch.save({"model": build_model(load_config(opts=UNET)).state_dict()}, tmp_path / "unet.pth")
    return ["MODEL.WEIGHTS", str(tmp_path / "unet.pth")]


def test_a_file_is_preprocessed_like_the_test_set(weights):
    """What the predictor makes of a file is what the model makes of the same slice of the data set."""
    record = next(r for r in DatasetCatalog.get("phantom_test") if r["sem_seg_array"].any())
    predictor = Predictor(load_config(opts=[*UNET, *weights]))
    output = predictor(record["file_name"])
    assert output["probabilities"].shape == (1, phantoms.PREPROCESSING.size, phantoms.PREPROCESSING.size)
    with torch.no_grad():
        expected = predictor.model([predictor.mapper(record)])[0]
    torch.testing.assert_close(output["sem_seg"], expected["sem_seg"])


def test_other_segmentors_get_the_slices_preprocessed_too(tmp_path):
    opts = [
        "MODEL.META_ARCHITECTURE",
        "SemanticSegmentor",
        "MODEL.BACKBONE.NAME",
        "build_isonet_fpn_backbone",
    ]
    opts += ["MODEL.ISONET.DEPTH", "18", "MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']"]
    opts += ["MODEL.FPN.OUT_CHANNELS", "8", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2", "INPUT.FORMAT", "RGB"]
    opts += ["MODEL.SEM_SEG_HEAD.NORM", "''", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "8"]
    opts += ["DATASETS.TEST", "('phantom_test',)", "INPUT.ALBUMENTATIONS.TEST", "[]"]
    torch.save({"model": build_model(load_config(opts=opts)).state_dict()}, tmp_path / "semseg.pth")
    record = DatasetCatalog.get("phantom_test")[8]
    predictor = Predictor(load_config(opts=[*opts, "MODEL.WEIGHTS", str(tmp_path / "semseg.pth")]))
    found = predictor(record["file_name"])["sem_seg"]
    assert found.shape == (2, record["height"], record["width"])
    place = record["placement"]
    inside = torch.zeros(found.shape[1:], dtype=torch.bool)
    inside[place.top : place.top + place.height, place.left : place.left + place.width] = 1
    assert not inside.all() and (found[0][~inside] == 1).all() and (found[1][~inside] == 0).all()
    torch.testing.assert_close(found.sum(dim=0), torch.ones(found.shape[1:]))


@pytest.mark.parametrize("last", [True, False])
def test_layout_is_that_of_the_config(toy_data, tmp_path, last):
    model = engine_toys.ToyDetector(engine_toys.toy_config(tmp_path))
    torch.save({"model": model.state_dict()}, tmp_path / "toy.pth")
    opts = ["MODEL.WEIGHTS", str(tmp_path / "toy.pth"), "MODEL.CHANNELS_LAST", last]
    model = Predictor(engine_toys.toy_config(tmp_path / "output", *opts)).model
    # one of 1x1 or of one channel lies both ways at once
    weights = [p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) == last for weight in weights)
