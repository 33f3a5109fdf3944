import logging
import os
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser

from iso_d2.engine.setup import find_config, load_config, setup


def test_file_then_pairs(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {BASE_LR: 0.5, MAX_ITER: 7}\n")
    (tmp_path / "a.yaml").write_text(
        "_BASE_: base.yaml\nMODEL: {ISONET: {DEPTH: 18}}\nSOLVER: {MAX_ITER: 8}\n"
    )
    cfg = load_config(tmp_path / "a.yaml", ["SOLVER.STEPS", "(3,)"])
    values = (cfg.MODEL.ISONET.DEPTH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS)
    assert values == (18, 0.5, 8, (3,))


def test_a_pair_may_change_the_type_of_what_is_none_by_default(tmp_path):
    (tmp_path / "a.yaml").write_text("ISO: {ORTHO: {COEFF: 0.1}}\nMODEL: {ISONET: {SCALE_INIT: 0.5}}\n")
    cfg = load_config(tmp_path / "a.yaml", ["ISO.ORTHO.COEFF", "auto", "MODEL.ISONET.SCALE_INIT", "1"])
    assert (cfg.ISO.ORTHO.COEFF, cfg.MODEL.ISONET.SCALE_INIT) == ("auto", 1)
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\nISO: {ORTHO: {COEFF: auto}}\n")
    assert load_config(tmp_path / "b.yaml", ["ISO.ORTHO.COEFF", "0.2"]).ISO.ORTHO.COEFF == 0.2


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml' does not exist, and none of this name"):
        load_config(tmp_path / "absent.yaml")


def test_unknown_key_names_similar_ones(tmp_path):
    (tmp_path / "a.yaml").write_text("MODEL: {ISONET: {DEPHT: 18}}\n")
    similar = r"MODEL\.ISONET\.DEPHT.*add_iso_config was called.*similar ones: MODEL\.ISONET\.DEPTH"
    with pytest.raises(KeyError, match=similar):
        load_config(tmp_path / "a.yaml")
    with pytest.raises(KeyError, match=similar):
        load_config(opts=["MODEL.ISONET.DEPHT", "18"])
    with pytest.raises(KeyError, match="none is similar"):
        load_config(opts=["ZZZ", "1"])


def test_other_config_errors_stay_as_they_are():
    with pytest.raises(AssertionError, match="odd length"):
        load_config(opts=["MODEL.DEVICE"])
    with pytest.raises(ValueError, match="Type mismatch"):
        load_config(opts=["MODEL.ISONET.DEPTH", "deep"])


@pytest.mark.parametrize(
    "available, device, mixed, said", [(False, "cpu", False, True), (True, "cuda", True, False)]
)
def test_device(available, device, mixed, said, monkeypatch, log):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    cfg = load_config(opts=["MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", "True"])
    assert (cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED, "running on the CPU" in log.text) == (
        device,
        mixed,
        said,
    )


def test_mixed_precision_is_off_on_a_chosen_cpu(log):
    assert not load_config(opts=["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "True"]).SOLVER.AMP.ENABLED
    assert "SOLVER.AMP.ENABLED is turned off" in log.text


def test_a_schedule_in_steps_beside_epochs_is_told(log):
    load_config(opts=["SOLVER.MAX_ITER", "7", "SOLVER.EPOCHS", "0"])
    load_config("quick/isounet_phantom")
    assert "no effect" not in log.text
    load_config("quick/isounet_phantom", ["SOLVER.MAX_ITER", "7", "TEST.EVAL_PERIOD", "2"])
    assert "SOLVER.MAX_ITER, TEST.EVAL_PERIOD: no effect, since SOLVER.EPOCHS is 20" in log.text


def test_setup_writes_config_and_log(tmp_path):
    folder = str(tmp_path / "output")
    args = default_argument_parser().parse_args(["OUTPUT_DIR", folder, "MODEL.DEVICE", "cpu"])
    cfg = setup(args)
    assert cfg.is_frozen()
    logging.getLogger("iso_d2.engine").info("a word of ours")
    with open(os.path.join(folder, "log.txt")) as f:
        assert "a word of ours" in f.read()
    assert os.path.isfile(os.path.join(folder, "config.yaml"))


@pytest.mark.parametrize(
    "arguments, on",
    [
        (["MODEL.META_ARCHITECTURE", "ImageClassifier"], True),
        (["MODEL.META_ARCHITECTURE", "UNetSegmentor"], True),
        (["--eval-only", "MODEL.META_ARCHITECTURE", "UNetSegmentor"], False),
        ([], False),
        (["CUDNN_BENCHMARK", "True"], True),
    ],
)
def test_cudnn_searches_where_images_are_of_one_size(tmp_path, monkeypatch, arguments, on):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    options = [*arguments, "OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"]
    setup(default_argument_parser().parse_args(options))
    assert torch.backends.cudnn.benchmark == on


def test_own_coco_format_data_sets_are_registered():
    cfg = load_config(opts=["DATASETS.COCO_FORMAT", "[['my_train', 'a.json', 'images']]"])
    assert cfg.DATASETS.COCO_FORMAT == [["my_train", "a.json", "images"]]
    with pytest.raises(FileNotFoundError, match=r"a\.json does not exist.*'my_train' was registered"):
        DatasetCatalog.get("my_train")
    with pytest.raises(ValueError, match=r"must be \[name, json file, image folder\], got \['my_train'\]"):
        load_config(opts=["DATASETS.COCO_FORMAT", "[['my_train']]"])


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"MODEL: !!python/object/apply:os.abort []\n", "could run code"),
        (b"", "KEY: VALUE in yaml"),
        (b"- MODEL\n", "KEY: VALUE in yaml"),
        (b"MODEL:\n DEVICE: cpu\n  MASK_ON: False\n", "KEY: VALUE in yaml"),
        (b"\xff\xfe", "KEY: VALUE in yaml"),
        (b"SOLVER: {BASE_LR: high}\n", "values of the keys' types"),
    ],
)
def test_a_file_that_is_no_config(tmp_path, content, cause):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.yaml' is not .*{cause}"):
        load_config(tmp_path / "a.yaml")


def test_a_key_without_a_value(tmp_path):
    (tmp_path / "a.yaml").write_text("TEST:\n  EVAL_PERIOD:\nISO: {ORTHO: {COEFF: }}\n")
    with pytest.raises(ValueError, match=r"a\.yaml' has no value for TEST\.EVAL_PERIOD$"):
        load_config(tmp_path / "a.yaml")


def test_an_absent_base(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: absent.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"a\.yaml' builds on '.*absent\.yaml' \(_BASE_\)"):
        load_config(tmp_path / "a.yaml")


def test_options_behind_pairs():
    args = default_argument_parser().parse_args(["SOLVER.MAX_ITER", "3", "--resume"])
    with pytest.raises(ValueError, match="--resume must come before the first KEY VALUE"):
        setup(args)


def test_configs_of_the_package_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = find_config("quick/isounet_phantom")
    assert whole.parts[-3:] == ("configs", "quick", "isounet_phantom.yaml")
    for name in (
        "quick/isounet_phantom.yaml",
        "configs/quick/isounet_phantom",
        "./configs/quick/isounet_phantom.yaml",
    ):
        assert find_config(name) == whole
    for name, near in (("isounet_phantom", "quick/isounet_phantom"), ("risonet50_frcn", "risonet50_frcnn")):
        with pytest.raises(FileNotFoundError, match=f"none of this name comes.*; similar ones: .*{near}"):
            find_config(name)
    with pytest.raises(FileNotFoundError):
        find_config("../configs/quick/isounet_phantom.yaml")
    (tmp_path / "risonet50_frcnn.yaml").write_text("VERSION: 2")
    for name in ("risonet50_frcnn", "risonet50_frcnn.yaml"):  # what lies here comes first
        assert find_config(name) == Path(f"{tmp_path.name}/risonet50_frcnn.yaml").relative_to(tmp_path.name)
