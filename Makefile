# What you can do here: `make help`. A fresh machine needs Python >= 3.11 with venv, make and g++.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# More arguments for pip, for example an index of CPU-only torch wheels.
PIP_ARGS ?=

# DeepSpeed compiles two small CPU operators once; keep them with the checkout.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.cache/torch_extensions
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo test slow lint type bench golden check clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv with everything that runs on a CPU

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "No '$(PYTHON)' found. Install Python 3.11 or newer, or name one: make setup PYTHON=python3.12" >&2; exit 3; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "mmprod needs Python 3.11 or newer; $$($(PYTHON) --version) is too old. Try: make setup PYTHON=python3.12" >&2; exit 3; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' has no venv module. On Debian or Ubuntu: apt install python3-venv" >&2; exit 3; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PIP_ARGS) -e ".[train,export,trt,serve,search,sign,dev]"
	@touch $@

demo: $(STAMP)  ## train, export, build engines and check them, on generated avatars
	$(BIN)/mmprod demo --out demo

test: $(STAMP)  ## the default tests
	$(BIN)/python -m pytest

slow: $(STAMP)  ## the tests that take longer
	$(BIN)/python -m pytest -m slow --durations=25

lint: $(STAMP)  ## style, layers, sizes, import cost
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --cache-dir .cache/import_linter
	$(BIN)/python tools/size.py --check
	$(BIN)/python tools/imports.py

type: $(STAMP)  ## strict types
	$(BIN)/mypy

bench: $(STAMP)  ## time and memory beside other libraries (extra `bench`)
	$(BIN)/python -m tools.bench

golden: $(STAMP)  ## regenerate golden files; say why in the commit
	$(BIN)/python tools/golden.py
	$(BIN)/python tools/deploy_golden.py

check: lint type test  ## everything a commit must pass

clean:  ## remove the environment, caches and demo output
	rm -rf $(VENV) .cache build dist demo
