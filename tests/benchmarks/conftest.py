import pytest

from iso_d2.modeling.isonet import LAYOUTS, Layout

TINY_DETECTOR = [
    "MODEL.RESNETS.DEPTH", 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 2,
    "MODEL.FPN.OUT_CHANNELS", 8,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 8,
]  # fmt: skip


@pytest.fixture
def tiny_detector(monkeypatch):
    """KEY VALUE pairs of a small detector; R-ISONet-18 has four blocks of eight channels meanwhile."""
    monkeypatch.setitem(LAYOUTS, 18, Layout((1, 1, 1, 1), (8, 8, 8, 8), stem_channels=8))
    return TINY_DETECTOR
