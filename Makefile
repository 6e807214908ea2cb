# Two commands matter: `make demo` and `make test`. Both set up everything they need.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test quick lint format reasons bench docs clean

# Compiled files are kept: without them every process that a test starts compiles refold anew.
export PYTHONDONTWRITEBYTECODE :=

# The torch that is tested; `make test TORCH=2.7.1` runs the suite on another, in a folder of its own.
TESTED := 2.14.1
TORCH ?= $(TESTED)
# torchvision 0.(n+15) is made for torch 2.n; the rest of the numbers is the same.
TORCHVISION ?= $(shell echo $(TORCH) | awk -F. '{ print "0." $$2 + 15 "." $$3 }')
VENV ?= .venv$(if $(filter-out $(TESTED),$(TORCH)),-torch-$(TORCH))
JOBS ?= 2
# The first interpreter that runs and is new enough; `make PYTHON=/path/to/python` overrides it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := $(VENV)/bin
READY := $(VENV)/.refold-ready
# Workers share the machine: more threads would only wait for each other.
test quick: export OMP_NUM_THREADS ?= 1
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(READY) ## create the environment (once)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { \
	  echo "refold needs Python 3.11 or newer and found none: install one, or say make PYTHON=/path/to/python" >&2; \
	  exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "could not create $(VENV): on Debian or Ubuntu, apt install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV): torch first (minutes, once)"
	@$(PIP) torch==$(TORCH) torchvision==$(TORCHVISION)
	@echo "setting up $(VENV): refold with everything"
	@$(PIP) -e '.[all,dev]' torch==$(TORCH) torchvision==$(TORCHVISION)
	@touch $@

demo: $(READY) ## train on digits, fold, prove, export, time; then three networks more
	@$(BIN)/refold demo

# Types are those of the tested torch: on another one only the tests run.
test: $(READY) $(if $(filter $(TESTED),$(TORCH)),lint) ## run the whole suite: ruff, pyright, pytest
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations=10

quick: $(READY) ## run the tests that take seconds
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not slow and not zoo'

lint: $(READY) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY) ## rewrite the files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reasons: $(READY) ## write docs/why-not-folded.md from src/refold/reasons
	$(BIN)/python -c "from refold.reasons import page; open('docs/why-not-folded.md', 'w').write(page())"

bench: $(READY) ## run the measured comparisons with other folders
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

docs: $(READY) ## build the site into site/
	@$(PIP) -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean: ## remove the environment and everything that was built
	rm -rf .venv .venv-torch-* $(VENV) build dist site demo-out .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
