from benchmarks.data import DataPath
from benchmarks.options import Options
from benchmarks.profiling import SHOWN, measure_profile


def test_profile_has_the_operators_of_a_penalised_step():
    narrow = ("MODEL.UNET.BASE_CHANNELS", 2)
    path = DataPath("phantoms", "quick/isounet_phantom.yaml", "phantom_train", 2, narrow)
    (table,) = measure_profile(Options(), 0, [path])
    assert table.title.startswith("quick/isounet_phantom.yaml, training step of batch 2: ")
    rows = {row["operator"]: row for row in table.rows}
    assert 5 < len(rows) <= SHOWN
    times = [row["cpu ms a step"] for row in table.rows]
    assert times == sorted(times, reverse=True) and 0 < sum(row["share"] for row in table.rows) <= 1
    # two 3x3 convolutions at each of 5 + 4 levels, 4 up-convolutions and the output, each once a step
    assert rows["aten::convolution_backward"]["calls a step"] == 23
