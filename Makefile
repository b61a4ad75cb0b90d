# Every target makes its own set-up: all it takes is make and Python >= 3.11.
#
#   make demo    study the model that ships inside, render the page, print its path
#   make test    run the test suite
#   make lint    check style and types
#   make docs    build the documentation, warnings are errors
#   make bench   measure speed and size as ratios
#   make clean   remove everything that was built

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
DEMO := runs/demo
DEMO_SUBSET := --subset 24 --seeds 4 --filmstrip 16

# Asked by running it: a launcher may exist for a version that is not installed.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; \
	done)

.PHONY: help demo test lint docs bench clean

help:
	@sed -n 's/^#   //p' Makefile

$(VENV)/.torch:
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found; name one: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

demo: $(VENV)/.ready
	$(BIN)/mnemoscope study embedded $(DEMO_SUBSET) --out $(DEMO)
	$(BIN)/mnemoscope report $(DEMO)

test: $(VENV)/.dev
	$(BIN)/pytest -q -n logical --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict --quiet --site-dir site

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) runs site build dist .pytest_cache .ruff_cache .hypothesis
