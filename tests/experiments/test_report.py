import pytest
from toy_records import toy_record, toy_records

from iso_d2.reproduction.report_values import TABLES, Metric
from iso_d2.reproduction.tables import (
    BEGIN,
    END,
    table_lines,
    tables_text,
    value_of,
    with_part,
    write_tables,
)
from iso_d2.reproduction.zoo import write_zoo

RISONET, ISONET = "cifar10-risonet-gamma1e-4", "cifar10-isonet-gamma1e-4"
CIFAR10 = next(table for table in TABLES if table.arms == "cifar10")
ABLATION = next(table for table in TABLES if table.arms == "ablation")


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
        "test top-1 (%): small": "49.3",
        "training top-1 (%): report": "97.308",
        "training top-1 (%): full": "100.0",
        "training top-1 (%): small": "50.3",
    }
    isonet = found["ISONet, gamma 1e-4"]
    assert isonet["test top-1 (%): small"] == "diverged at iteration 17"
    assert isonet["test top-1 (%): full"] == "-" and isonet["test top-1 (%): report"] == "90.32"


def test_several_seeds_give_mean_and_spread():
    records = toy_records(
        *(toy_record(RISONET, seed=s, final=accuracy(v)) for s, v in ((1, 50), (2, 52), (3, 57)))
    )
    # mean 53; sd = sqrt((9 + 1 + 16) / 2) = 3.61
    assert rows(CIFAR10, records)["R-ISONet, gamma 1e-4"]["test top-1 (%): small"] == "53.0 ± 3.6 (n=3)"


def test_a_mean_over_the_last_evaluations():
    points = [{"iteration": i, "metrics": {"volume_dice_mean": v}} for i, v in enumerate((0, 60, 70, 74))]
    record = toy_record("signal-lgg-unet-bn", evaluations={"lgg_val": points})
    metric = Metric("Dice", "lgg_val", "volume_dice_mean", last=3)
    assert value_of(record, metric) == pytest.approx(68)
    assert value_of({**record, "diverged_at": 7}, metric) is None
    assert value_of({**record, "evaluations": {}}, metric) is None


def test_what_is_missing_is_named_with_the_reason():
    text = "\n".join(table_lines(CIFAR10, toy_records(toy_record(RISONET, final=accuracy(50.0)))))
    assert "Small: R-ISONet-20: depth 20, 2 epochs." in text
    assert "Missing at small scale (left out, for time): R-ISONet, gamma 3e-4; ISONet, gamma 3e-4; " in text
    assert "Missing at small scale (no result yet): ISONet, gamma 1e-4; ResNet, batch norm" in text
    assert "Missing at full scale (no result yet): R-ISONet, gamma 1e-4; " in text
    assert "Protocol: The report names neither depth" in text


def test_the_loss_without_the_penalty_is_taken_from_the_end_of_the_curve():
    records = toy_records(toy_record("cifar10-ablation-no-srelu", table="ablation", final=accuracy(30.0)))
    row = rows(ABLATION, records)["without SReLU (ReLU)"]
    assert row["training loss at the end, without the penalty: small"] == "1.50"


def test_a_net_without_penalty_has_its_loss_in_the_total_alone():
    curve = [{"iteration": 390, "total_loss": 1.25, "lr": 0.1}]
    record = toy_record("cifar10-ablation-no-penalty", table="ablation", final=accuracy(30.0), curve=curve)
    row = rows(ABLATION, toy_records(record))["without the orthogonality penalty"]
    assert row["training loss at the end, without the penalty: small"] == "1.25"


def test_at_full_scale_the_ablation_is_compared_with_the_arm_of_the_report():
    records = toy_records(toy_record(RISONET, "full", final=accuracy(93.0)))
    assert rows(ABLATION, records)["R-ISONet, all parts"]["test top-1 (%): full"] == "93.0"
    assert "all parts" not in "\n".join(
        line for line in table_lines(ABLATION, records) if "Missing at full" in line
    )


def test_where_the_runs_were_made_is_said(tmp_path):
    text = tables_text(tmp_path, toy_records(toy_record(RISONET), toy_record(ISONET)))
    assert (
        "- *small*: 2 runs, 1.0 hours in all, 2026-01-02; a CPU, 2 cores, 1 thread a run, no GPU; "
        "commit abc1234; python 3.11.7, torch 2.14.1." in text
    )
    assert "*full*: 0 runs" not in text


def test_only_the_part_between_the_marks_is_written(tmp_path):
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "README.md"
    path.write_text("# Measured\n\nby hand, above\n")
    write_tables(tmp_path, toy_records())
    first = path.read_text()
    assert first.startswith(f"# Measured\n\n{BEGIN}\n\nThe tables below")
    assert first.endswith(f"{END}\n\nby hand, above\n")
    path.write_text(first.replace("# Measured\n", "# Measured\n\nThree sentences.\n"))
    write_tables(tmp_path, toy_records(toy_record(RISONET, final=accuracy(12.3))))
    second = path.read_text()
    assert second.startswith(f"# Measured\n\nThree sentences.\n\n{BEGIN}") and "12.3" in second
    assert second.endswith(f"{END}\n\nby hand, above\n") and second.count(BEGIN) == 1


@pytest.mark.parametrize("text", [f"a {BEGIN} b", f"{END} a {BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_marks_that_do_not_fit_are_refused(text):
    with pytest.raises(ValueError, match=r"README\.md must hold"):
        with_part(text, "new", "README.md")


def test_pictures_are_shown_where_they_are(tmp_path):
    folder = tmp_path / "docs" / "figures"
    folder.mkdir(parents=True)
    (folder / "reproduction_mri-patient_small.png").touch()
    text = tables_text(tmp_path, toy_records())
    assert text.count("(../docs/figures/reproduction_mri-patient_small.png)") == 1
    assert "reproduction_cifar10" not in text


def test_the_list_of_models(tmp_path):
    assert write_zoo(tmp_path, toy_records()) is None
    write_zoo(tmp_path, toy_records(toy_record(RISONET, final=accuracy(49.27))))
    text = (tmp_path / "MODEL_ZOO.md").read_text()
    row = next(line for line in text.splitlines() if RISONET in line)
    for part in (
        f"results/reproduction/small/{RISONET}-seed1.json",
        "test top-1 (%) 49.3",
        "| 0.754 | 1.0 GB | 0.27 M | 0.0408 G | `0123456789ab` |",
    ):
        assert part in row
    assert "## Scale full" not in text
