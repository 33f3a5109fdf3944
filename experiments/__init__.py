"""The report's experiments and those beside them, run and compared: what tools/reproduce.py does.

``tables/`` says what there is, ``configs/`` how it is trained on a CPU. An *experiment* is a network with a
setting, a *run* an experiment at a scale with a seed, a *record* the json file that a run leaves in results/.
"""
