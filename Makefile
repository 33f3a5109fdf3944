# `make train` and `make test` prepare the environment on first use; CONTRIBUTING.md says more.

# Any Python from 3.10 on, e.g. `make test PYTHON=python3.12`. It is asked only when VENV is made.
PYTHON ?= python3
# An existing environment may be named here; it is brought to the versions below and in requirements.txt.
VENV ?= .venv
# any: a Detectron2 that VENV already has, else the prebuilt wheel; git: compile the official repository.
DETECTRON2 ?= any
ifeq ($(filter any git,$(DETECTRON2)),)
$(error DETECTRON2 must be any or git, got '$(DETECTRON2)')
endif

# A tested pair. These are CUDA builds, which run on a CPU too.
TORCH := torch==2.14.1 torchvision==0.29.1
# The official sources of 2024-04-17 but for three small patches, built for Linux on x86-64.
DETECTRON2_WHEEL := sal-detectron2==0.7.2
DETECTRON2_GIT := git+https://github.com/facebookresearch/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
READY := $(VENV)/.ready-$(DETECTRON2)

.PHONY: help setup train test benchmark docs lint format clean

help:
	@echo "make train    train the small detector on generated images (minutes on a CPU) and write the page of the run"
	@echo "make test     run the tests"
	@echo "make benchmark  measure speed and memory against the targets (15 minutes on two cores)"
	@echo "make docs     build the documentation and the API reference into site/ (Python 3.11 or newer)"
	@echo "make lint     check style; make format mends what it can"
	@echo "make setup    only prepare $(VENV); DETECTRON2=git compiles the official Detectron2"
	@echo "make clean    remove caches and build files, not $(VENV) and not output/"

setup: $(READY)

train: $(READY)
	$(PY) tools/train_net.py --config-file configs/quick/risonet18_frcnn_shapes.yaml OUTPUT_DIR output/quick
	$(PY) -m iso_d2.commands report output/quick

test: $(READY)
	$(PY) -m pytest

benchmark: $(READY)
	$(PY) tools/benchmark.py all

# strict: a link or an anchor that leads nowhere is an error
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache
	find iso_d2 benchmarks experiments tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp comes last, so that an interrupted set-up starts again.
$(READY): requirements.txt setup.py Makefile
	@$(PY) -m pip --version >/dev/null 2>&1 || $(MAKE) --no-print-directory new-environment
	@echo "Installing into $(VENV): torch brings CUDA libraries of some gigabytes, this can take a while ..."
	$(PIP) install --quiet $(TORCH) -r requirements.txt
	@$(MAKE) --no-print-directory install-detectron2-$(DETECTRON2)
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	$(PY) -c "import torchvision, iso_d2"
	@touch $@

.PHONY: new-environment install-detectron2-any install-detectron2-wheel install-detectron2-git

new-environment:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { \
	  echo "iso_d2 needs Python 3.10 or newer, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)" >&2; \
	  echo "Name another one, e.g. make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

install-detectron2-any:
	@$(PY) -c "import importlib.util, sys; sys.exit(not importlib.util.find_spec('detectron2'))" \
	  || $(MAKE) --no-print-directory install-detectron2-wheel

# The wheel is tagged for Python 3.10, but nothing that iso_d2 uses is in its compiled part. It also holds
# a top-level package `tools`, so it is unpacked aside and Detectron2 alone is taken from it.
install-detectron2-wheel:
	rm -rf $(VENV)/unpacked
	$(PIP) install --quiet --no-deps --only-binary=:all: --python-version 3.10 --target $(VENV)/unpacked \
	  $(DETECTRON2_WHEEL) || { echo "No Detectron2 wheel for this machine; try: make setup DETECTRON2=git" >&2; exit 1; }
	site="$$($(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))")" \
	  && cp -R $(VENV)/unpacked/*.dist-info "$$site" && mv $(VENV)/unpacked/detectron2 "$$site"
	rm -rf $(VENV)/unpacked

# Without its dependencies: it forbids iopath 0.1.10, which works; requirements.txt has what it needs.
# Built before the prebuilt wheel goes, so that a failed build leaves a working environment.
install-detectron2-git:
	rm -rf $(VENV)/unpacked
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir $(VENV)/unpacked "$(DETECTRON2_GIT)"
	$(PIP) uninstall --quiet --yes $(firstword $(subst =, ,$(DETECTRON2_WHEEL)))
	$(PIP) install --quiet --no-deps $(VENV)/unpacked/*.whl
	rm -rf $(VENV)/unpacked
