import pytest


@pytest.fixture
def tool(load_tool):
    return load_tool("reproduce")


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))


def test_list_says_how_far_each_experiment_is(tool, no_data, capsys):
    assert tool.main(["mri", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 + 4 * 5 + 4
    assert any(line.startswith("mri-patient-isounet seed 1") for line in lines)
    left_out = next(line for line in lines if line.startswith("mri-patient-unet-bn seed 1"))
    assert "the folds measure more patients" in left_out


def test_dry_run_prints_commands_as_one_types_them(tool, no_data, capsys):
    assert tool.main(["cifar", "--dry-run", "--seeds", "3", "4", "--arms", "cifar10-r*net-bn"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "python tools/train_net.py --resume --config-file experiments/configs/cifar_resnet20.yaml"
    )
    assert " OUTPUT_DIR output/reproduce/cpu/cifar10-resnet-bn/seed3 SEED 3 " in first
    assert first.endswith(" SOLVER.BASE_LR 0.2 ISO.ANALYSIS.PERIOD 391")
    assert "--eval-only" in second and second.endswith(""" DATASETS.TEST "('cifar10_train',)\"""")


def test_seeds_come_one_after_the_other(tool):
    args = tool.parse_args(["mri", "--scale", "full", "--seeds", "2", "--experiments", "*unet-bn"])
    assert [run.name for run in tool.choose(args)] == [
        "mri-image-unet-bn seed 1",
        "mri-patient-unet-bn seed 1",
        "mri-folds-unet-bn seed 1",
        "mri-image-unet-bn seed 2",
        "mri-patient-unet-bn seed 2",
        "mri-folds-unet-bn seed 2",
        *(f"mri-folds-unet-bn seed {seed}" for seed in (3, 4, 5)),
    ]


def test_a_fold_can_be_chosen(tool):
    args = tool.parse_args(["mri", "--seeds", "7", "3", "--experiments", "mri-*-unet-bn"])
    assert [run.name for run in tool.choose(args)] == [
        "mri-image-unet-bn seed 7",
        "mri-patient-unet-bn seed 7",
        "mri-image-unet-bn seed 3",
        "mri-patient-unet-bn seed 3",
        "mri-folds-unet-bn seed 3",
    ]
    assert [run.config.DATASETS.TEST for run in tool.choose(args)[4:]] == [("lgg_fold2of5_val",)]


def test_one_number_of_seeds_is_how_many_several_are_which(tool):
    assert list(tool.parse_args(["all"]).seeds) == [1]
    assert list(tool.parse_args(["all", "--seeds", "3"]).seeds) == [1, 2, 3]
    assert list(tool.parse_args(["all", "--seeds", "3", "7"]).seeds) == [3, 7]
    assert list(tool.parse_args(["all", "--seeds", "3", "3"]).seeds) == [3]


def test_in_small_two_run_side_by_side(tool):
    assert tool.parse_args(["all", "--scale", "cpu"]).jobs == 2
    assert tool.parse_args(["all", "--scale", "full"]).jobs == 1
    assert tool.parse_args(["all", "--scale", "full", "--jobs", "3"]).jobs == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["all", "--experiments", "nothing*"], "no experiment is named nothing*"),
        (["mri", "--experiments", "mri-*", "no"], "no experiment is named no;"),
        (["mri", "--experiments", "mri-folds-*", "--seeds", "7", "7"], "has the seeds 1 to 5, one for each"),
        (["all", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["all", "--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["all", "--seeds", "1", "two"], "--seeds must be whole numbers, got 1 two"),
    ],
)
def test_what_is_wrong_in_a_command_line_is_named(tool, capsys, words, message):
    with pytest.raises(SystemExit) as error:
        tool.main(words)
    assert message in f"{error.value}{capsys.readouterr().err}"


def test_a_run_without_data_skips_all_says_why_and_reports(tool, no_data, monkeypatch, tmp_path, capsys):
    for name in ("configs", "experiments"):
        (tmp_path / name).symlink_to(tool.ROOT / name)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "write_report", lambda root: f"report in {root}")
    assert tool.main(["cifar", "--arms", "cifar10-resnet-bn"]) == 0  # the option's earlier name
    out = capsys.readouterr().out
    assert f"report in {tmp_path}" in out
    assert "Skipped: cifar10-resnet-bn seed 1: cifar10: neither cifar-10-batches-bin" in out
