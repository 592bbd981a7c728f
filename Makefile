# `make help` lists the targets. Each sets up `.venv` first, so each works on a machine with nothing but Python.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test check sweep clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(READY) ## create .venv and install the project and its tools

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed, " \
		"this is " + sys.version.split()[0] + "; try: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## teach a small model to correct itself, on this machine
	$(BIN)/python -m stasc.run

test: $(READY) ## run all tests
	$(BIN)/python -m pytest -n 2

check: $(READY) ## format, lint, types, and the README against conf/
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_readme.py

sweep: $(READY) ## run the paper's eight variants, one after another
	$(BIN)/python -m stasc.run --multirun init=fixed,evolving filter=strict,lenient start=fixed,evolving sweep.name=paper8

clean: ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
