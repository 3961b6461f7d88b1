# Every target makes .venv and installs what it needs, once; it installs again only when setup.cfg or a requirements file changed.
#   make demo PYTHON=python3.12     another Python for a new .venv
#   make test PYTEST_ARGS="-k maml" other arguments for pytest (DEMO_ARGS likewise)
#   make test WORKERS=0             the tests in one process; else as many as are given, two unless told

PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
PACKAGE := setup.cfg pyproject.toml
# a worker takes a whole file; in the order of tests/conftest.py
IN_FILES := --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo demo-rl test test-all lint types docs wheel clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-core ## MAML on sine waves in about a minute; results and figures in runs/demo
	$(BIN)/mamllit fit -c experiments/demo.yaml $(DEMO_ARGS)

demo-rl: $(VENV)/.installed-core ## MAML on 2D navigation in about two minutes; results and figures in runs/demo_rl
	$(BIN)/mamllit fit -c experiments/demo_rl.yaml $(DEMO_ARGS)

test: $(VENV)/.installed-test ## the quick tests (MAMLLIT_OMNIGLOT=DIR, MAMLLIT_MINI_IMAGENET=DIR add those that need the images)
	$(BIN)/python -m pytest -n $(WORKERS) $(IN_FILES) $(PYTEST_ARGS)

test-all: $(VENV)/.installed-test ## all tests but those that train for minutes: processes, full disks, W&B failures, the docs' commands, the wheel
	$(BIN)/python -m pytest -n $(WORKERS) $(IN_FILES) -m "not long and not slurm" $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## mypy
	$(BIN)/mypy

docs: $(VENV)/.installed-docs ## the docs site, docs/_build/index.html; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build

wheel: $(BIN)/python ## a wheel in dist/, with the experiments
	$(PIP) wheel --no-deps -w dist .

clean: ## remove caches and build leftovers; .venv and runs/ stay
	rm -rf build dist docs/_build docs/methods docs/cards *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find mamllit tests experiments -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-core: $(PACKAGE) | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: $(PACKAGE) tests/requirements-oracle.txt | $(BIN)/python
	$(PIP) -e ".[test]" -r tests/requirements-oracle.txt
	@touch $@

$(VENV)/.installed-docs: $(PACKAGE) | $(BIN)/python
	$(PIP) -e ".[docs]"
	@touch $@

$(VENV)/.installed-dev: $(PACKAGE) | $(BIN)/python
	$(PIP) -e ".[dev,rl,hub]"
	@touch $@

# pip >= 23.1 reads the options in tests/requirements-oracle.txt; Python 3.11's first releases bring an older one.
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found; name a Python from 3.11 on: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); mamllit needs Python 3.11 or newer: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) && $(PIP) --upgrade "pip>=25.3" || { rm -rf $(VENV); exit 1; }
