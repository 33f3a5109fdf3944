import pytest
from lgg_files import PATIENTS, write_lgg

from iso_d2.data import lgg


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """The small data set, in place of the real one as long as the test runs; its folder of patients."""
    monkeypatch.setattr(lgg, "PATIENTS", PATIENTS)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("ISO_D2_CACHE", str(tmp_path / "cache"))
    return write_lgg(tmp_path)
