# Each target does its own set-up: a virtual environment in .venv, the pinned packages, this checkout in place.
# PYTHON names the interpreter (3.11 or later), ARGS goes to pytest, e.g. make test ARGS="-k taming".

PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
INSTALL = $(PY) -m pip install -c constraints.txt -e

.PHONY: help demo test lint bench accept models

help:
	@echo "make demo    unlearn a digit in a small flow, and print the path of the report"
	@echo "make test    all tests (ARGS=... goes to pytest)"
	@echo "make lint    format, style and types"
	@echo "make bench   time the engine against plain PyTorch loops (ARGS=language for one alone)"
	@echo "make accept  the long checks, with their figures"
	@echo "make models  train the packaged models anew"

demo: $(VENV)/.ready
	@$(PY) -m unlearn.run recipe=quickstart

test: $(VENV)/.ready-dev
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.ready-dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: $(VENV)/.ready-dev
	$(PY) -m tests.benchmarks $(ARGS)

accept: $(VENV)/.ready-dev
	$(PY) -m tests.acceptance

models: $(VENV)/.ready-dev
	$(PY) -m unlearn.experiment.make_assets

$(VENV)/bin/pip:
	@given=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))') \
	  || { echo "Python 3.11 or later is needed; $(PYTHON) is $${given:-not there}. Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(INSTALL) .
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(INSTALL) ".[dev]"
	$(PY) -m pip install --no-deps gan-face-generate==1.1.1
	@touch $@ $(VENV)/.ready
