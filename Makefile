# Two commands: `make tour` and `make test`. Each sets up .venv by itself; only Python 3.11+ with pip is assumed.
# Another interpreter: make tour PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tiny models are fastest on one thread, and the parallel test processes would otherwise fight for the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
SETUP := PYTHON="$(PYTHON)" scripts/setup

.DEFAULT_GOAL := help
.PHONY: help tour serve test test-fast check docs clean setup setup-dev setup-system

help:
	@echo "make tour       set up, then take one small model through the rooms and write the report"
	@echo "make serve      set up, then open the studio: the web pages over the runs"
	@echo "make test       set up, then all checks and the whole test suite"
	@echo "make test-fast  as test, without the tests marked slow"
	@echo "make check      format, lint, types, layers, sizes"
	@echo "make docs       build the docs site into site/"
	@echo "make clean      remove what these commands made, .venv included; runs/ is kept"

tour: setup
	$(BIN)/polyloom tour

serve: setup
	$(BIN)/polyloom serve

test: check setup-system
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2

test-fast: check setup-system
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 -m "not slow"

check: setup-dev
	scripts/check

docs: setup-dev
	$(BIN)/python scripts/generate_docs.py
	$(BIN)/zensical build --clean --strict

setup:
	@$(SETUP) all

setup-dev:
	@$(SETUP) all,dev,docs

setup-system:
	@scripts/setup-system

clean:
	rm -rf $(VENV) site .cache docs/generated dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
