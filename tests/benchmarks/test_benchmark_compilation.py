import torch

from benchmarks import compilation
from benchmarks.options import Options


def test_compiled_steps_beside_those_of_the_network(monkeypatch):
    compiled = []

    def compile_nothing(forward):
        def run(*args):
            compiled.append(type(forward.__self__).__name__)
            return forward(*args)

        return run

    monkeypatch.setattr(torch, "compile", compile_nothing)
    for name, (*model, _, _) in compilation.CASES.items():
        monkeypatch.setitem(compilation.CASES, name, (*model, 2, (32, 32)))
    tables = compilation.measure_compilation(Options(repeats=1), 0)
    assert [table.title.split()[0] for table in tables] == ["classifier", "ISO-UNet", "detector"]
    assert set(compiled) == {"ISONet", "UNet", "FPN"}
    for table in tables:
        assert [row["network"] for row in table.rows] == ["as it is", "compiled"]
        assert table.rows[0]["first step (s)"] is None and table.rows[1]["first step (s)"] > 0
