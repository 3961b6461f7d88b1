# Every target makes .venv and installs what it needs, once; it installs again only when setup.cfg or a requirements file changed.
#   make demo PYTHON=python3.12     another Python for a new .venv
#   make test PYTEST_ARGS="-k maml" other arguments for pytest (DEMO_ARGS likewise)

PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
PACKAGE := setup.cfg pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help demo test lint types clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-core ## MAML on sine waves in about a minute; results and figures in runs/demo
	$(BIN)/mamllit fit -c experiments/demo.yaml $(DEMO_ARGS)

test: $(VENV)/.installed-test ## the tests (MAMLLIT_OMNIGLOT=DIR, MAMLLIT_MINI_IMAGENET=DIR add those that need the images)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## mypy
	$(BIN)/mypy

clean: ## remove caches and build leftovers; .venv and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find mamllit tests experiments -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-core: $(PACKAGE) | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: $(PACKAGE) tests/requirements-oracle.txt | $(BIN)/python
	$(PIP) -e ".[test]" -r tests/requirements-oracle.txt
	@touch $@

$(VENV)/.installed-dev: $(PACKAGE) | $(BIN)/python
	$(PIP) -e ".[dev]"
	@touch $@

# pip >= 23.1 reads the options in tests/requirements-oracle.txt; Python 3.11's first releases bring an older one.
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found; name a Python from 3.11 on: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); mamllit needs Python 3.11 or newer: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) && $(PIP) --upgrade "pip>=25.3" || { rm -rf $(VENV); exit 1; }
