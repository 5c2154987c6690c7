# Two commands for a newcomer: `make run` trains something, `make test` proves it works. Needs git, make and Python 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help run test lint bench clean

help:
	@echo "make run    set up, then fine-tune a small real model on this machine"
	@echo "make test   set up, then lint, type checks and all tests this machine can run"
	@echo "make lint   ruff and mypy"
	@echo "make bench  figures, each beside a named peer"

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("fl needs Python 3.10 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

run: $(STAMP)
	$(BIN)/fl run quickstart

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest --quiet --numprocesses 2 tests/unit
	$(BIN)/python -m pytest --quiet tests/training tests/engines

bench: $(STAMP)
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/detection.py
	$(BIN)/python bench/doctor.py
	$(BIN)/python bench/first_step.py
	$(BIN)/python bench/determinism.py
	$(BIN)/python bench/overhead.py

clean:
	rm -rf $(VENV) build dist
