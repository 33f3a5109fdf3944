"""What isometric networks cost against others, measured on this machine; `tools/benchmark.py` runs it.

Each part of the benchmark is a file: machine, penalty, activation, step, memory, inference, data,
profile, launches, scaling.
"""
