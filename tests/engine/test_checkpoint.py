import pickle

import numpy as np
import pytest
import torch
from detectron2.modeling.backbone import FPN
from engine_toys import ToyModel, tiny_resnet
from torch import nn

from iso_d2.engine.checkpoint import IsoCheckpointer
from iso_d2.modeling import ISONet


def isonet(depth, **kwargs):
    return ToyModel(ISONet(depth, residual=True, **kwargs))


@pytest.fixture(scope="module")
def isonet18():
    return isonet(18).state_dict()


def save(state, tmp_path, name="model.pth"):
    path = tmp_path / name
    torch.save({"model": state}, path)
    return str(path)


def randomize(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def test_same_model_loads_without_a_word(tmp_path, log):
    source, target = randomize(ToyModel(tiny_resnet())), ToyModel(tiny_resnet())
    IsoCheckpointer(target).load(save(source.state_dict(), tmp_path))
    assert all(torch.equal(v, target.state_dict()[k]) for k, v in source.state_dict().items())
    assert "in part" not in log.text


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth' does not exist\. Correct MODEL\.WEIGHTS"):
        IsoCheckpointer(ToyModel(tiny_resnet())).load(str(tmp_path / "absent.pth"))


def test_no_path_loads_nothing():
    assert IsoCheckpointer(ToyModel(tiny_resnet())).load("") == {}


@pytest.mark.parametrize(
    "content, name",
    [(b"", "a.pth"), (b"no checkpoint", "a.pth"), (b"\x80\x04", "a.pkl"), (pickle.dumps([1], 2), "a.pth")],
)
def test_unreadable_file(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}' cannot be read: it is truncated or no checkpoint"):
        IsoCheckpointer(ToyModel(tiny_resnet())).load(str(tmp_path / name))


def test_truncated_file_and_then_a_good_one(tmp_path):
    model = ToyModel(tiny_resnet())
    whole = save(model.state_dict(), tmp_path)
    content = (tmp_path / "model.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(content[: len(content) // 2])
    checkpointer = IsoCheckpointer(model)
    with pytest.raises(ValueError, match=r"half\.pth' cannot be read"):
        checkpointer.load(str(tmp_path / "half.pth"))
    checkpointer.load(whole)


def test_checkpoint_of_another_depth_is_refused(tmp_path, isonet18):
    """R-ISONet-18's second 3x3 convolutions have name and shape of R-ISONet-50's, yet no block fits."""
    target = isonet(50)
    shapes = {name: value.shape for name, value in target.state_dict().items()}
    assert sum(shapes.get(name) == value.shape for name, value in isonet18.items()) > 8
    with pytest.raises(ValueError) as error:
        IsoCheckpointer(target).load(save(isonet18, tmp_path))
    message = str(error.value)
    assert "does not fit the model's backbone: none of its 16 blocks" in message
    missing = len(set(shapes) - set(isonet18))
    reshaped = [n for n in isonet18 if n in shapes and shapes[n] != isonet18[n].shape]
    assert f"{missing} missing in the checkpoint: " in message
    assert f"{len(reshaped)} of another shape: " in message
    assert f"{len(set(isonet18) - set(shapes))} not in the model" in message
    first = reshaped[0]
    sizes = f"{tuple(isonet18[first].shape)} in the checkpoint, {tuple(shapes[first])} in the model"
    assert f"{first} ({sizes})" in message


def test_deeper_model_takes_what_fits_and_says_what_not(tmp_path, isonet18, log):
    target = isonet(34)
    IsoCheckpointer(target).load(save(isonet18, tmp_path))
    missing = len(set(target.state_dict()) - set(isonet18))
    assert f"fits the model only in part. {missing} missing in the checkpoint: backbone.res2.2." in log.text
    assert "0 not in the model." in log.text
    assert len({r.getMessage() for r in log.records if r.levelname == "WARNING"}) == 1


def test_checkpoint_of_another_network_is_refused(tmp_path, isonet18):
    with pytest.raises(ValueError, match="none of its 3 blocks"):
        IsoCheckpointer(ToyModel(tiny_resnet())).load(save(isonet18, tmp_path))


def test_stem_alone_does_not_count(tmp_path):
    model = ToyModel(tiny_resnet())
    state = {name: value for name, value in model.state_dict().items() if "stem" in name}
    with pytest.raises(ValueError, match="none of its 3 blocks"):
        IsoCheckpointer(model).load(save(state, tmp_path))


def test_weights_count_and_scales_do_not(tmp_path, log):
    """ISONet has all weights of R-ISONet's first block, but neither scales nor projections."""
    plain = ToyModel(ISONet(8, residual=False, stem="cifar"))
    IsoCheckpointer(isonet(8, stem="cifar")).load(save(plain.state_dict(), tmp_path))
    # 3 scales and 2 projections
    assert "5 missing in the checkpoint: " in log.text


def test_other_head_and_new_fpn_are_fine(tmp_path, log):
    """Weights of a classifier in a detector: the backbone matters."""
    source, target = randomize(ToyModel(None)), ToyModel(None)
    source.backbone, target.backbone = nn.Module(), FPN(tiny_resnet(), ["res3"], 8)
    source.backbone.bottom_up = randomize(tiny_resnet())
    target.head = nn.Linear(3, 3)
    IsoCheckpointer(target).load(save(source.state_dict(), tmp_path))
    loaded, expected = target.backbone.bottom_up.state_dict(), source.backbone.bottom_up.state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert "6 missing in the checkpoint: " in log.text


class NoBackbone(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.down = nn.Conv2d(3, width, 3)
        self.up = nn.Conv2d(width, 3, 3)


def test_model_without_backbone_is_taken_as_a_whole(tmp_path, log):
    path = save(NoBackbone(4).state_dict(), tmp_path)
    IsoCheckpointer(NoBackbone(4)).load(path)
    with pytest.raises(ValueError, match="none of its 2 blocks"):
        IsoCheckpointer(NoBackbone(5)).load(path)


def test_matching_heuristics(tmp_path):
    """Files made elsewhere: names without `backbone.`, arrays, a mark in the file or in the path."""
    source = randomize(tiny_resnet())
    arrays = {name: value.numpy() for name, value in source.state_dict().items()}
    with open(tmp_path / "elsewhere.pkl", "wb") as f:
        pickle.dump({"model": arrays, "__author__": "somebody", "matching_heuristics": True}, f)
    plain = save(source.state_dict(), tmp_path)
    for path in (str(tmp_path / "elsewhere.pkl"), plain + "?matching_heuristics=True"):
        target = ToyModel(tiny_resnet())
        IsoCheckpointer(target).load(path)
        for name, value in target.backbone.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), arrays[name])
    with pytest.raises(ValueError, match=r"append \?matching_heuristics=True"):
        IsoCheckpointer(ToyModel(tiny_resnet())).load(plain)


@pytest.mark.parametrize("source, target", [("scaled", "paper"), ("paper", "scaled"), ("scaled", "scaled")])
@pytest.mark.parametrize("heuristics", [True, False])
def test_weights_keep_their_function_whatever_the_signal(tmp_path, log, source, target, heuristics):
    torch.manual_seed(0)
    net = ISONet(20, True, stem="cifar", num_classes=3, signal=source, out_features=["res4", "linear"]).eval()
    model = ToyModel(ISONet(20, True, stem="cifar", signal=target)).eval()
    prefix = "" if heuristics else "backbone."
    path = save({prefix + name: value for name, value in net.state_dict().items()}, tmp_path)
    IsoCheckpointer(model).load(path + ("?matching_heuristics=True" if heuristics else ""))
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(model.backbone(x)["res4"], net(x)["res4"])
    if heuristics:  # the classifier is left out, with its gain
        assert "in part" not in log.text


@pytest.fixture
def saved(tmp_path):
    """A checkpointer with three checkpoints, of the steps 1, 2 and 3."""
    checkpointer = IsoCheckpointer(ToyModel(tiny_resnet()), str(tmp_path))
    for step in (1, 2, 3):
        checkpointer.save(f"model_000000{step}", iteration=step)
    return checkpointer


def flip_a_byte(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        lambda f: f.write_bytes(b""),
        lambda f: f.write_bytes(f.read_bytes()[:999]),
        lambda f: f.unlink(),
    ],
)
def test_the_newest_whole_checkpoint_is_taken(saved, tmp_path, damage, log):
    damage(tmp_path / "model_0000003.pth")
    assert saved.has_checkpoint()
    assert saved.get_checkpoint_file() == str(tmp_path / "model_0000002.pth")
    assert "Going on from" in log.text
    assert "model_0000003.pth is damaged" in log.text
    assert saved.resume_or_load("", resume=True)["iteration"] == 2


@pytest.mark.parametrize("content", [None, b"", b"\xff\x00", b"../elsewhere.pth", b"absent.pth"])
def test_last_checkpoint_is_lost(saved, tmp_path, content):
    last = tmp_path / "last_checkpoint"
    last.unlink() if content is None else last.write_bytes(content)
    assert saved.has_checkpoint()
    assert saved.get_checkpoint_file() == str(tmp_path / "model_0000003.pth")


def test_last_checkpoint_is_obeyed(saved, tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth\n")
    assert saved.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")


def test_no_whole_checkpoint(saved, tmp_path):
    for file in tmp_path.glob("model_*"):
        flip_a_byte(file)
    with pytest.raises(
        ValueError, match=r"no whole checkpoint.*_0000001\.pth is damaged.*Take another OUTPUT_DIR"
    ):
        saved.resume_or_load("", resume=True)


def test_a_flipped_byte_is_found_in_any_file(tmp_path):
    model = ToyModel(tiny_resnet())
    save(model.state_dict(), tmp_path)
    flip_a_byte(tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model\.pth' cannot be read.*is damaged"):
        IsoCheckpointer(model).load(str(tmp_path / "model.pth"))


class Touch:
    """Touches a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (self.file, "w")


@pytest.mark.parametrize("suffix", ["pkl", "pth", "pyth"])
def test_code_in_a_checkpoint_does_not_run(tmp_path, suffix):
    mark, file = tmp_path / "ran", tmp_path / f"hostile.{suffix}"
    state = {"model": {"weight": Touch(str(mark))}, "__author__": "x"}
    if suffix == "pkl":
        file.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, file)
    with pytest.raises(ValueError, match="holds objects that could run code"):
        IsoCheckpointer(ToyModel(tiny_resnet())).load(str(file))
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_of_a_pkl_are_harmless(tmp_path, protocol):
    model = ToyModel(tiny_resnet())
    arrays = {key: np.asarray(value) for key, value in randomize(model).state_dict().items()}
    (tmp_path / "a.pkl").write_bytes(
        pickle.dumps({"model": arrays, "__author__": "someone", "scale": np.float32(1)}, protocol)
    )
    target = ToyModel(tiny_resnet())
    IsoCheckpointer(target).load(str(tmp_path / "a.pkl"))
    assert all(np.array_equal(target.state_dict()[key], array) for key, array in arrays.items())


def test_ruined_weights_are_neither_saved_nor_loaded(saved, tmp_path):
    weight = saved.model.backbone.res2[0].conv1.weight
    nn.init.constant_(weight, float("inf"))
    with pytest.raises(FloatingPointError, match=r"backbone\.res2\.0\.conv1\.weight.*model_0000003\.pth"):
        saved.save("model_0000004", iteration=4)
    assert saved.get_checkpoint_file() == str(tmp_path / "model_0000003.pth")
    ruined = save(saved.model.state_dict(), tmp_path, "ruined.pth")
    with pytest.raises(ValueError, match=r"not finite: backbone\.res2\.0\.conv1\.weight"):
        IsoCheckpointer(ToyModel(tiny_resnet())).load(ruined)


def test_a_full_disk_leaves_the_last_good_checkpoint(saved, tmp_path, monkeypatch):
    def full(data, file):
        file.write_bytes(b"half")
        raise RuntimeError("file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        OSError, match=r"cannot be written: file write failed.*Make space.*model_0000003\.pth"
    ):
        saved.save("model_0000004", iteration=4)
    assert sorted(f.name for f in tmp_path.glob("*model*")) == [f"model_000000{n}.pth" for n in (1, 2, 3)]
