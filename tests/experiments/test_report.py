import json

import pytest
from toy_records import toy_record, toy_records

from experiments.experiment import TABLES
from experiments.report import results_text, table_lines, with_part, write_report

RISONET, ISONET = "cifar10-risonet-gamma1e-4", "cifar10-isonet-gamma1e-4"
CIFAR10 = next(table for table in TABLES if table.name == "cifar10")
ABLATION = next(table for table in TABLES if table.name == "ablation")
MRI = next(table for table in TABLES if table.name == "mri-patient")
START, END = "<!-- verdicts: start -->", "<!-- verdicts: end -->"


def accuracy(test, train=None):
    return {"cifar10_test": {"top1": test}, **({"cifar10_train": {"top1": train}} if train else {})}


def rows(table, records):
    """First cell of each row -> its other cells by the heading of their column."""
    lines = [line for line in table_lines(table, records) if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(cells[0][1:], row[1:], strict=True)) for row in cells[2:]}


def test_our_figures_stand_beside_those_of_the_report():
    records = toy_records(
        toy_record(RISONET, final=accuracy(49.27, 50.31)),
        toy_record(RISONET, "full", final=accuracy(93.04, 99.96)),
        toy_record(ISONET, diverged=17),
    )
    found = rows(CIFAR10, records)
    assert found["R-ISONet, gamma 1e-4"] == {
        "test top-1 (%): report": "93.86",
        "test top-1 (%): full": "93.0",
        "test top-1 (%): cpu": "49.3",
        "training top-1 (%): report": "97.308",
        "training top-1 (%): full": "100.0",
        "training top-1 (%): cpu": "50.3",
    }
    isonet = found["ISONet, gamma 1e-4"]
    assert isonet["test top-1 (%): cpu"] == "diverged at iteration 17"
    assert isonet["test top-1 (%): full"] == "-" and isonet["test top-1 (%): report"] == "90.32"


def test_several_seeds_give_mean_and_spread():
    records = toy_records(
        *(toy_record(RISONET, seed=s, final=accuracy(v)) for s, v in ((1, 50), (2, 52), (3, 57)))
    )
    # mean 53; sd = sqrt((9 + 1 + 16) / 2) = 3.61
    assert rows(CIFAR10, records)["R-ISONet, gamma 1e-4"]["test top-1 (%): cpu"] == "53.0 ± 3.6 (n=3)"


def test_only_what_was_measured_is_shown_and_how(tmp_path):
    text = "\n".join(table_lines(CIFAR10, toy_records(toy_record(RISONET, final=accuracy(50.0)))))
    assert "- cpu: depth 20, 2 epochs." in text and "- Protocol: The report names neither depth" in text
    assert "full" not in text and "| ResNet, batch norm" not in text
    assert "| ISONet, gamma 1e-4" in text  # what the report has stays beside it
    assert table_lines(CIFAR10, toy_records()) == []
    assert "### " not in results_text(tmp_path, toy_records())


def test_setups_that_differ_say_whose_they_are():
    records = toy_records(
        toy_record(RISONET), toy_record(ISONET, setup="depth 56", starts_from="backbone.pth")
    )
    assert table_lines(CIFAR10, records)[-3:-1] == [
        "- cpu (R-ISONet, gamma 1e-4): depth 20, 2 epochs.",
        "- cpu (ISONet, gamma 1e-4): depth 56, from backbone.pth.",
    ]


def test_a_table_has_a_part_for_each_data_set():
    final = {"lgg_val": {"dice_loss": 0.1, "volume_dice_mean": 80.0}, "lgg_train": {"dice_loss": 0.05}}
    lines = table_lines(MRI, toy_records(toy_record("mri-patient-isounet", final=final)))
    parts = [line for line in lines if line.endswith(":") and not line.startswith("-")]
    assert parts == ["Validation:", "Training set:", "Validation, what the report does not measure:"]


def test_at_full_scale_the_ablation_is_compared_with_the_experiment_of_the_report():
    records = toy_records(toy_record(RISONET, "full", final=accuracy(93.0)))
    assert rows(ABLATION, records)["R-ISONet, all parts"]["test top-1 (%): full"] == "93.0"


def test_where_the_runs_were_made_is_said(tmp_path):
    text = results_text(tmp_path, toy_records(toy_record(RISONET), toy_record(ISONET)))
    assert (
        "- *cpu*: 2 runs, 1.0 hours in all, 2026-01-02; a CPU, 2 cores, 1 thread a run, no GPU; "
        "commit abc1234; python 3.11.7, torch 2.14.1." in text
    )
    assert "*full*: 0 runs" not in text


def test_only_the_parts_between_the_marks_are_written(tmp_path):
    names = ["cifar10-risonet-scaled", "cifar10-resnet-bn"]  # of a claim that the README has
    records = [toy_record(name, final=accuracy(12.3)) for name in names]
    folder = tmp_path / "results" / "reproduction" / "cpu"
    folder.mkdir(parents=True)
    results, front = tmp_path / "results" / "README.md", tmp_path / "README.md"
    front.write_text("no marks")
    said = write_report(tmp_path)
    assert said == "written: results/README.md" and front.read_text() == "no marks"
    for number, record in enumerate(records):
        (folder / f"{number}.json").write_text(json.dumps(record))
    results.write_text(
        results.read_text().replace("# Measured results\n", "# Ours\n\nThree sentences.\n") + "below"
    )
    front.write_text(f"above {START}as it was{END} below")
    said = write_report(tmp_path).splitlines()
    assert said[1:] == ["written: results/README.md", "written: README.md"]
    text = results.read_text()
    assert text.startswith(
        "# Ours\n\nThree sentences.\n\n<!-- reproduction: start -->\n\n## Do the report's claims"
    )
    assert "| 12.3 " in text and text.endswith("<!-- reproduction: end -->\nbelow")
    assert front.read_text().startswith(f"above {START}\n\n| claim") and "as it was" not in front.read_text()
    assert front.read_text().endswith(f"|\n\n{END} below")


@pytest.mark.parametrize("text", [f"a {START} b", f"{END} a {START}", f"{START}{END}{START}{END}", "none"])
def test_marks_that_do_not_fit_are_refused(text):
    with pytest.raises(ValueError, match=r"README\.md must hold"):
        with_part(text, "verdicts", "new", "README.md")


def test_pictures_are_shown_where_they_are(tmp_path):
    folder = tmp_path / "docs" / "figures"
    folder.mkdir(parents=True)
    (folder / "reproduction_mri-patient_cpu.png").touch()
    text = results_text(tmp_path, toy_records(toy_record("mri-patient-isounet"), toy_record(RISONET)))
    assert text.count("(../docs/figures/reproduction_mri-patient_cpu.png)") == 1
    assert "reproduction_cifar10" not in text
