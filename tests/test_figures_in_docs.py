"""Every figure of README and docs that comes from a json file in results/ is the one in that file.

An entry of FIGURES is a phrase with # for each number, and the values in their order. The phrase must be in
the page, and each of its numbers must be its value, rounded to the digits that the page shows.
"""

import json
import re
import statistics

import pytest
from figures_of_performance import PERFORMANCE, ROOT, load

from experiments.experiment import SCALES
from experiments.record import read_records
from experiments.verdicts import verdict_table


def records(experiment):
    """The records of an experiment at the scale of a CPU, one for each seed."""
    files = sorted((ROOT / "results" / "reproduction" / "cpu").glob(f"{experiment}-seed*.json"))
    return [json.loads(file.read_text()) for file in files]


def final(experiment, data, metric):
    """The last evaluation of the only seed of an experiment."""
    (record,) = records(experiment)
    return record["final"][data][metric]


def over_seeds(experiment, data, metric, last=1):
    """[mean, standard deviation, n] over the seeds, each the mean of its last evaluations."""
    runs = [record["evaluations"][data][-last:] for record in records(experiment)]
    values = [statistics.mean(evaluation["metrics"][metric] for evaluation in run) for run in runs]
    return [statistics.mean(values), statistics.stdev(values), len(values)]


def settings(runs, rows):
    """FIGURES of a table of settings: label -> the runs that it shows, separated by semicolons."""
    for label, numbers in rows.items():
        hashes = "; ".join("#" * len(numbers))
        values = [runs[i][key] for key in ("accuracy", "loss") for i in numbers]
        yield f"| {label} | {hashes} | {hashes} |", values


CONDITIONING = load("signal_conditioning.json")
TEN_EPOCHS, ISONET_FIRST, ISONET_SECOND = CONDITIONING["ten_epochs_left_behind"]
SHAPES = load("signal_shapes.json")
SHAPES_BEFORE, SHAPES_NOW = SHAPES["runs"], SHAPES["with_whitening_and_centring"]["runs"]
RATES = load("signal_rates.json")["runs"]
FOLD_RATES = [run["evaluations"][0][1] for run in RATES if run["data"] == "lgg_augmented"]
DICE_OVER, PROBABILITY = (load("lgg_choices.json")[what]["runs"] for what in ("dice_over", "probability"))
WORST_SIX = load("lgg_choices.json")["probability"]["worst_six_at_0.5"]
DICE_OVER = [
    [run[name] for name in ("volume_dice", "detection_rate", "false_alarm_rate")] for run in DICE_OVER
]
ISOMETRIZED = [run["evaluations"][-1]["top1"] for run in load("isometrized_cifar10.json")["runs"]]

RISONET = over_seeds("signal-cifar-risonet", "cifar10_test", "top1")
RESNET = over_seeds("signal-cifar-resnet-bn", "cifar10_test", "top1")
ISONET = over_seeds("signal-cifar-isonet", "cifar10_test", "top1")
VOLUME_DICE = {
    "iso": over_seeds("signal-lgg-isounet", "lgg_val", "volume_dice_mean", last=3),
    "bn": over_seeds("signal-lgg-unet-bn", "lgg_val", "volume_dice_mean", last=3),
    "paper": final("signal-lgg-isounet-paper", "lgg_val", "volume_dice_mean"),
}
DICE_LOSS = {
    "iso": over_seeds("signal-lgg-isounet", "lgg_val", "dice_loss", last=3),
    "bn": over_seeds("signal-lgg-unet-bn", "lgg_val", "dice_loss", last=3),
    "paper": final("signal-lgg-isounet-paper", "lgg_val", "dice_loss"),
}

SCENES = {
    "R-ISONet-18": "risonet",
    "ResNet-18, batch norm": "bn",
    "ResNet-18, group norm": "gn",
    "ResNet-18, no norm": "nonorm",
}


def by_batch(key):
    """Mean, standard deviation and n of the box AP with 1, 2 and 8 images a step, one after the other."""
    return [
        x for batch in (1, 2, 8) for x in over_seeds(f"signal-scenes-{key}-batch{batch}", "shapes_test", "AP")
    ]


def unet_at(rate):
    """Volume Dice of UNet on the tuning split at a learning rate."""
    (run,) = [run for run in RATES if run["options"].endswith(f"/unet_narrow_lgg.yaml SOLVER.BASE_LR {rate}")]
    return run["evaluations"][-1][1]


def last_of_third_seed(metric, last):
    record = records("signal-lgg-isounet")[2]
    return statistics.mean(e["metrics"][metric] for e in record["evaluations"]["lgg_val"][-last:])


HABITS = [load("training.json")["habits"][name] for name in ("classifier", "unet")]
KILLED = load("robustness.json")["habits"]
FIGURES = {
    "docs/training.md": [
        ("all # trainings that finished after # kills", [KILLED[name] for name in ("equal", "kills")]),
        ("classifier, # weights, 32 images | quick UNet, # weights", [run["weights"] for run in HABITS]),
        *(
            (f"| {row} | # ms | # ms |", [run["ms a step"][name] for run in HABITS])
            for row, name in (
                ("a step", "step in 1 parts"),
                ("the same in 4 parts", "step in 4 parts"),
                ("the average, each step", "average"),
            )
        ),
    ],
    "README.md": [
        ("AP50 was #, # and # %", [run["AP50"] for run in SHAPES_NOW]),
    ],
    "docs/detection.md": [
        (
            "AP is # on the images it was trained on",
            [load("overfit8_risonet18_frcnn_fpn.json")["metrics"]["bbox/AP"]],
        ),
    ],
    "docs/classification.md": [
        ("R-ISONet-20 reaches # ± # % on CIFAR-10 in ten epochs with the scaled signal", RISONET[:2]),
        ("ResNet-20 with batch norm # ± # % (n = # each;", RESNET),
    ],
    "docs/segmentation.md": [
        ("a narrow ISO-UNet then has a volume Dice of # ± # % (n = #)", VOLUME_DICE["iso"]),
        ("with the paper's signal it has # % (n = 1)", [VOLUME_DICE["paper"]]),
        ("UNet with batch norm # ± # % (n = #)", VOLUME_DICE["bn"]),
        ("ISO-UNet, scaled | image | # | # | # |", DICE_OVER[0]),
        ("ISO-UNet, scaled | batch | # | # | # |", DICE_OVER[1]),
        ("UNet, batch norm | image | # | # | # |", DICE_OVER[2]),
        ("UNet, batch norm | batch | # | # | # |", DICE_OVER[3]),
        *((f"| {run['probability']} | # | # | # | # |", list(run.values())[1:]) for run in PROBABILITY),
        (
            "found # % of the tumour of the worst six of 22 patients, and # % of",
            [WORST_SIX["found"], WORST_SIX["right"]],
        ),
        ("`DATASETS.FOREGROUND_REPEATS 3` | # | # | # |", DICE_OVER[4]),
    ],
    "docs/signal.md": [
        ("a volume Dice of #, # and # %; at", FOLD_RATES[:3]),
        ("UNet with batch norm had #, # and # % (n = 1 each)", FOLD_RATES[3:]),
        *(
            (f"| {name} | # ± # (n = #) | # ± # (n = #) | # ± # (n = #) |", by_batch(key))
            for name, key in SCENES.items()
        ),
        (
            "evaluations (%) | # (final, n = 1) | # ± # (n = #) | # ± # (n = #) |",
            [VOLUME_DICE["paper"], *VOLUME_DICE["iso"], *VOLUME_DICE["bn"]],
        ),
        (
            "mean Dice loss, all slices | # (final, n = 1) | # ± # (n = #) | # ± # (n = #) |",
            [DICE_LOSS["paper"], *DICE_LOSS["iso"], *DICE_LOSS["bn"]],
        ),
        ("R-ISONet-20, ResNet-20 | | # ± # (n = #) | # ± # (n = #) |", [*RISONET, *RESNET]),
        ("no skip connections: ISONet-20 | | # ± # (n = #) |", ISONET),
        (
            "AP50 | 77 to # | #, #, # (n = 3) |",
            [
                load("quick_risonet18_frcnn_shapes.json")["metrics"]["bbox/AP50"],
                *(run["AP50"] for run in SHAPES_BEFORE),
            ],
        ),
        (
            "the same: AP | # | #, #, # |",
            [
                load("quick_risonet18_frcnn_shapes.json")["metrics"]["bbox/AP"],
                *(run["AP"] for run in SHAPES_BEFORE),
            ],
        ),
        (
            "AP50; AP | | #, #, #; #, #, # (n = 3) |",
            [run[key] for key in ("AP50", "AP") for run in SHAPES_NOW],
        ),
        ("0.08 and 0.025 gave about the same (volume Dice # and #)", [unet_at(0.08), unet_at(0.025)]),
        ("it was stopped with # % after two epochs", [ISONET_FIRST["top1"][0][1]]),
        (
            "At 0.03 it ended with # % (bf16, n = 1) and a training loss of #",
            [ISONET_SECOND["top1"][-1][1], ISONET_SECOND["training_loss"][-1][1]],
        ),
        ("The loss fell from # to # when", [loss for _, loss in ISONET_SECOND["training_loss"][:2]]),
        (
            "the mean Dice loss over all slices is # at a volume Dice of #",
            [last_of_third_seed("dice_loss", 3), last_of_third_seed("volume_dice_mean", 3)],
        ),
        ("a run of ten epochs (seed 1) reached # %", [TEN_EPOCHS["top1"][-1][1]]),
        ("the bound costs nothing (# with it and without)", [CONDITIONING["two_epochs"][1]["accuracy"]]),
        *settings(
            CONDITIONING["one_epoch"],
            {
                "stem whitens at its start, then trained under the penalty": [0],
                "stem whitens at its start, then trained without penalty": [7],
                "stem whitens, fixed": [2],
                "kernels centred at the start alone": [12],
                "means removed from their gradients alone": [3],
                "both: kernels stay centred": [1],
                "the same, gain of the stem 2.3 times as large": [6],
                "stem whitens, fixed, and kernels stay centred": [4],
                "the same, whitened values 2.3 times smaller": [5],
                "the same, rate 0.03; 0.12": [13, 10],
                "**ISONet-20** (no skip connection), with both": [11],
            },
        ),
        *settings(
            CONDITIONING["two_epochs"],
            {
                "rate 0.06, clipped at norm 1, no penalty": [0],
                "penalty `spectral`, 0.2": [1],
                "the same, linear layer centred": [2],
                "the same, b = -0.5": [5],
                "linear layer centred, b = -1, metric, 1x1 projections centred": [6],
                "linear layer centred, rate 0.03, clipped at norm 5": [7],
                "the same, scales at a tenth of the rate": [9],
                "linear layer centred, rate 0.03, clipped at norm 5, b = -0.5, its gain 3.2": [8],
                "the same, rate 0.06, gain 1.6": [10],
                "the same, rate 0.03, gain 3.2, b = -0.25": [11],
                "the same, b = -0.5, SReLU's gain": [12],
                "**ISONet-20**: rate 0.06, clipped at norm 1, b = -1, linear layer centred, its gain 8": [16],
                "the same, SReLU's gain": [19],
                "the same, gain 2.8; 23": [17, 18],
                "the same, gain 8, rate 0.03": [20],
                "rate 0.02, clipped at norm 5, gain 8": [21],
                "rate 0.03, clipped at norm 5, gain 2.8, b = -0.5; b = -1": [13, 15],
            },
        ),
    ],
    "docs/isometrize.md": [
        ("| ResNet-20 isometrized | `cifar_isometrized20.yaml` | # % | # % |", ISOMETRIZED[:2]),
        ("MODEL.ISONET.WHITEN False` | # % | # % |", ISOMETRIZED[2:4]),
        ("| R-ISONet-20 | `cifar_isonet20.yaml MODEL.ISONET.SIGNAL scaled` | # % | |", ISOMETRIZED[4:]),
    ],
    "docs/performance.md": PERFORMANCE,
}


def faults(text, phrase, values):
    """What is wrong with a phrase in a text: nothing, that it is not there, or numbers that differ."""
    pattern = re.escape(phrase).replace(r"\#", r"(\d[\d,]*(?:\.\d+)?)").replace(r"\ ", " ")
    found = re.findall(pattern, text)
    if not found:
        return [f"not in the page: {phrase}"]
    wrong = []
    for numbers in found:
        numbers = [numbers] if isinstance(numbers, str) else numbers
        for number, value in zip(numbers, values, strict=True):
            digits = len(number.partition(".")[2])
            if abs(float(number.replace(",", "")) - value) > 0.5000001 * 10**-digits:
                wrong.append(f"{phrase}: {number} in the page, {value} in results/")
    return wrong


@pytest.mark.parametrize("page", FIGURES)
def test_figures_are_those_of_the_results(page):
    text = " ".join((ROOT / page).read_text().split())
    assert [fault for phrase, values in FIGURES[page] for fault in faults(text, phrase, values)] == []


def test_verdicts_are_those_of_the_records():
    table = verdict_table({scale: read_records(ROOT, scale) for scale in SCALES}, short=True)
    text = (ROOT / "README.md").read_text()
    assert f"<!-- verdicts: start -->\n\n{table}\n\n<!-- verdicts: end -->" in text


def test_another_figure_or_phrase_is_a_fault():
    text = "R-ISONet-20 reaches 83.9 ± 0.3 % in 1,234 steps"
    phrase = "reaches # ± # % in # steps"
    assert faults(text, phrase, [83.94, 0.32, 1234]) == []
    assert faults(text, phrase, [83.96, 0.32, 1234]) == [f"{phrase}: 83.9 in the page, 83.96 in results/"]
    assert len(faults(text, phrase, [83.94, 0.22, 1235])) == 2
    assert faults(text, "reaches # percent", [83.94]) == ["not in the page: reaches # percent"]
