import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from iso_d2.benchmark import ALL, PARTS, Options, judge, run, run_benchmark, saved_bytes
from iso_d2.benchmark.activation import forward_and_backward, measure_activation, operators
from iso_d2.benchmark.data import DataPath, data_paths, measure_data, training_loop
from iso_d2.benchmark.machine import floor_milliseconds, measure_machine
from iso_d2.benchmark.memory import MIB, TARGET, measure_memory
from iso_d2.benchmark.networks import isonet, resnet, training_step
from iso_d2.benchmark.penalty import measure_penalty
from iso_d2.benchmark.step import measure_detectors, measure_step, targets
from iso_d2.modeling.isonet import LAYOUTS, Layout

TINY = Options(depth=8, batch=2, size=(16, 16), repeats=1)
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
def tiny_stages(monkeypatch):
    """Depth 18 with four blocks of eight channels."""
    monkeypatch.setitem(LAYOUTS, 18, Layout((1, 1, 1, 1), (8, 8, 8, 8), stem_channels=8))


def rows_by(table, key):
    return {row[key]: row for row in table.rows}


def test_machine_part_has_rates_and_the_floors_that_follow(monkeypatch):
    monkeypatch.setattr("iso_d2.benchmark.machine.PRODUCT", (2, 8, 8, 8))
    monkeypatch.setattr("iso_d2.benchmark.machine.COPY", 64)
    rates, floors = measure_machine(TINY, 0)
    rate = rates.rows[0]["measured"]["median"] * 1e9
    works = rows_by(floors, "work")
    assert all(
        row["floor, ms"] == pytest.approx(1e3 * row["1e9 multiply-adds"] * 1e9 / rate) for row in floors.rows
    )
    forward, both = (row["1e9 multiply-adds"] for row in floors.rows[1:])
    assert both == pytest.approx(3 * forward)
    # 13 frequencies of a 3x3 kernel, five products each, beside two transforms; R-ISONet-8 has 6 and 2 1x1
    assert works["penalty, value and gradient"]["1e9 multiply-adds"] > 13 * 5 * (2 * 16**3 + 2 * 32**3) / 1e9
    assert floor_milliseconds(5e9, 1e10) == 500


def test_penalty_part_has_forms_options_and_shapes():
    whole, shapes = measure_penalty(TINY, 0)
    names = list(rows_by(whole, "penalty"))
    assert names[0].startswith("paper's form")
    assert [any(word in name for name in names) for word in ("exact", "fraction 0.25", "every 5 steps")] == [
        True
    ] * 3
    assert all(row["n"] == 1 and row["share of the step"] > 0 for row in whole.rows)
    # every 5 steps costs a fifth of the mode that it is computed from
    by_name = rows_by(whole, "penalty")
    ours, fifth = (
        by_name[f"iso_d2, mode paper{suffix}"]["ms"]["median"]
        for suffix in ("", ", every 5 steps (computed)")
    )
    assert fifth == pytest.approx(ours / 5)
    assert sum(row["layers"] for row in shapes.rows) == 8  # R-ISONet-8: 6 in blocks, 2 projections
    assert not any("target" in row for row in whole.rows)  # targets are for depth 50


@pytest.mark.parametrize("channels_last", [False, True])
def test_activation_part_has_a_table_for_each_shape(channels_last):
    tables = measure_activation(Options(batch=1, size=(16, 16), repeats=1, channels_last=channels_last), 0)
    assert len(tables) == (4 if channels_last else 5)
    assert "channels last" in tables[-1].title
    for table in tables:
        rows = rows_by(table, "operator")
        assert rows["SReLU"]["SReLU's time over it"] is None
        assert rows["batch norm, ReLU in place"]["SReLU's time over it"]["median"] > 0


def test_measured_operators_have_autograds_gradients():
    channels = 3
    x, residual = torch.randn(2, 2, channels, 4, 4).unbind()
    alone, summed = operators(channels, TINY)
    for operator in (alone["SReLU"], alone["relu(x - b) + b"]):
        with torch.no_grad():
            operator.threshold.copy_(torch.tensor([-1.0, 0.0, 0.5]))
        grad_x, grad_b = forward_and_backward(operator, x.clone())()
        passed = x > operator.threshold.detach().view(-1, 1, 1)
        torch.testing.assert_close(grad_x, passed.float())
        torch.testing.assert_close(grad_b, (~passed).float().sum((0, 2, 3)))
    for operator in summed.values():
        bound = 0.0 if isinstance(operator, type(lambda: 0)) else -1.0
        grads = forward_and_backward(operator, x.clone(), residual.clone())()
        torch.testing.assert_close(grads[0], (x + residual > bound).float())
        torch.testing.assert_close(grads[1], grads[0])


def test_operator_in_place_changes_the_buffer_and_no_copy():
    x = torch.tensor([[-2.0, 3.0]])
    forward_and_backward(nn.ReLU(inplace=True), x)()
    assert x.tolist() == [[0.0, 3.0]]


def test_frozen_batch_norm_has_the_statistics_of_the_images():
    frozen, norm = resnet(TINY, "FrozenBN"), resnet(TINY, "BN")
    images = TINY.images()
    torch.testing.assert_close(frozen(images), norm.train()(images), rtol=1e-3, atol=1e-4)


def test_step_part_compares_with_all_norms():
    plain, optimized = measure_step(TINY, 0)
    assert list(rows_by(plain, "network")) == ["R-ISONet-8", "ResNet-8 BN", "ResNet-8 FrozenBN"]
    assert plain.rows[0].keys() == {"network", "ms", "n", "images / s"}
    assert plain.rows[1]["ours over it"]["median"] > 0
    assert "penalty, SGD" in optimized.rows[0]["network"]


def test_step_of_a_detector_with_and_without_penalty(tiny_stages, monkeypatch):
    # eight channels make no 32 groups
    monkeypatch.setattr("iso_d2.benchmark.step.norms", lambda options: ("BN", "FrozenBN"))
    options = Options(depth=18, detector_size=(64, 64), repeats=1)
    table = measure_detectors(options, 0, [*TINY_DETECTOR, "ISO.ORTHO.PERIOD", 4])
    rows = rows_by(table, "network")
    assert list(rows) == [
        "R-ISONet-18 FPN",
        "R-ISONet-18 FPN, penalty at every step",
        "ResNet-18 FPN BN",
        "ResNet-18 FPN FrozenBN",
        "R-ISONet-18 FPN, penalty every 4th step, as configured (computed)",
    ]
    without, every, _, _, fourth = (row["ms"]["median"] for row in table.rows)
    assert fourth == pytest.approx(without + (every - without) / 4)
    assert rows["R-ISONet-18 FPN, penalty at every step"]["penalty's share"]["median"] == pytest.approx(
        (every - without) / every
    )


def test_targets_are_for_the_settings_that_they_speak_of():
    assert targets(Options(depth=18)) == {}
    assert targets(Options()) == {"BN": 1.0}


def test_memory_part_is_the_same_twice_and_counts_checkpointing():
    (table,), (again,) = measure_memory(TINY, 0), measure_memory(TINY, 0)
    assert table == again
    rows = {name: row["saved, MiB"] for name, row in rows_by(table, "network").items()}
    assert rows["R-ISONet-8"] < rows["R-ISONet-8, plain: relu(x - b) + b, x + s * f"]
    assert (
        rows["R-ISONet-8"]
        > rows["R-ISONet-8, checkpointed res2"]
        > rows["R-ISONet-8, checkpointed res2, res3, res4"]
    )
    assert rows_by(table, "network")["ResNet-8 BN"]["over BN"] == 1


def test_isonet_keeps_at_most_six_tenths_of_batch_norms_bytes():
    options = Options()
    images = options.images()
    ours, norm = (saved_bytes(net, images) for net in (isonet(options), resnet(options, "BN")))
    assert judge(ours / norm, at_most=TARGET)["met"]
    assert norm == pytest.approx(327.9 * MIB, rel=0.01)


def test_data_part_sets_what_is_given_beside_what_is_taken(tiny_stages):
    resize = ["INPUT.ALBUMENTATIONS.TRAIN", [["Resize", {"height": 32, "width": 32}]]]
    paths = [
        DataPath(
            "mapper",
            "risonet50_frcnn_fpn.yaml",
            "shapes_train",
            1,
            ("MODEL.ISONET.DEPTH", 18, *TINY_DETECTOR, *resize, "DATALOADER.NUM_WORKERS", 0),
        ),
        DataPath(
            "batches", "quick/isounet_phantom.yaml", "phantom_train", 2, ("MODEL.UNET.BASE_CHANNELS", 2)
        ),
    ]
    (table,) = measure_data(TINY, 0, paths)
    for row in table.rows:
        given, taken = row["images / s, one process"]["median"], row["model's images / s"]
        assert row["given over taken, one process"] == pytest.approx(given / taken)
        assert 0 < row["wait over step"]["median"] < 1
        assert row["target"]["text"].startswith("at most 5%")
    assert [row["batch"] for row in table.rows] == [1, 2]


def test_generated_data_take_the_place_of_missing_ones(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    paths = data_paths()
    assert [path.dataset for path in paths] == ["shapes_train", "benchmark_cifar", "phantom_train"]


def test_loop_tells_waiting_from_working():
    made = []

    def loader():
        while True:
            made.append(1)
            yield len(made)

    steps = []
    waits, busy = training_loop(loader(), steps.append, seconds=0, rounds=10)
    assert steps == [1, 2, 3, 4, 5]  # two unmeasured, at least three measured
    assert len(waits) == len(busy) == 3
    assert len(training_loop(loader(), steps.append, seconds=60, rounds=2)[0]) == 2


def test_training_step_leaves_weights_changed_by_the_optimizer_and_no_gradients():
    net, images = isonet(TINY), TINY.images()
    before = net.stem.conv.weight.detach().clone()
    training_step(net, images, TINY)()
    assert torch.equal(net.stem.conv.weight, before)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    training_step(net, images, TINY, optimizer, lambda: F.mse_loss(net.stem.conv.weight, before + 1))()
    assert not torch.equal(net.stem.conv.weight, before)
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_and_channels_last(dtype):
    options = Options(depth=8, batch=1, size=(16, 16), dtype=dtype, channels_last=True)
    images = options.images()
    assert images.is_contiguous(memory_format=torch.channels_last)
    with options.autocast():
        features = isonet(options)(images)["res4"]
    assert features.dtype == getattr(torch, dtype)
    assert features.is_contiguous(memory_format=torch.channels_last)


def test_time_is_divided_among_the_parts_asked_for():
    divided = run.shares(ALL, 600)
    assert sum(divided.values()) == pytest.approx(600)
    assert set(divided) == set(PARTS) - {"scaling"}
    assert run.shares(["memory"], 60) == {"memory": 60}


def test_parts_before_a_failing_one_are_written(monkeypatch, tmp_path):
    def fail(options, seconds):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(PARTS, "inference", fail)
    shown = []
    with pytest.raises(RuntimeError, match="out of memory"):
        run_benchmark(["memory", "inference"], TINY, 1, tmp_path / "out.json", shown.append)
    (part,) = json.loads((tmp_path / "out.json").read_text())["parts"].items()
    assert part[0] == "memory"
    assert part[1]["options"]["size"] == [16, 16]
    assert any("Saved for backward" in text for text in shown)


def test_unknown_part(tmp_path):
    with pytest.raises(ValueError, match=r"benchmark parts are machine, penalty, .*, got 'speed'"):
        run_benchmark(["speed"], TINY, 1, tmp_path / "out.json")
