# make chapter NAME=gdt    set everything up and run a chapter          BUDGET=smoke|small|full-…   ARGS="-p seed=1"
# make test                lint, types and every test                   TESTS="tests/unit -k media"
# make notebook NAME=gdt   execute a chapter into its committed notebook
# make record NAME=gdt     run the missing cells of its claims          ARGS="--dry-run"
# make book                the site in book/_build/html, readable without a network
# make bench               side-by-side ratios
# make lock                the exact versions behind published results
#
# Everything happens in $(VENV), made here from pyproject.toml and made again when that changes.

PYTHON ?= python3
VENV ?= .venv
PINS ?=
BUDGET ?= small
ARGS ?=
TESTS ?= tests
# Threads of a test process: two processes share the cores.
WORKERS ?= 2
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help named chapter notebook record test lint pytest test-oldest book bench lock readme clean

help:
	@sed -n '1,7s/^# //p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of extras; $(PINS) are added requirements, e.g. the oldest supported versions.
$(VENV)/.ready-run: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable . $(PINS)
	@touch $@
$(VENV)/.ready-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test,scale,book]' $(PINS)
	@touch $@ $(VENV)/.ready-run
$(VENV)/.ready-bench: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test,bench]' $(PINS)
	@touch $@ $(VENV)/.ready-run

named:
	@test -n '$(NAME)' || { echo 'Say which chapter, e.g. NAME=gdt. make chapter NAME=gdt runs it.'; exit 1; }

chapter: named $(VENV)/.ready-run
	$(BIN)/avssl run '$(NAME)' --budget '$(BUDGET)' $(ARGS)

notebook: named $(VENV)/.ready-run
	$(BIN)/avssl notebook '$(NAME)' $(ARGS)

record: named $(VENV)/.ready-run
	$(BIN)/avssl record '$(NAME)' $(ARGS)

test: lint pytest

lint: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest: $(VENV)/.ready-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov=avssl_core --cov-report=term:skip-covered \
		--cov-fail-under=$(if $(filter tests,$(TESTS)),90,0) $(TESTS)

# The oldest torch, torchvision and torchaudio that are supported together, in an environment of their own. Types are
# checked against the newest torch alone, as its annotations differ from version to version.
test-oldest:
	$(MAKE) pytest VENV=.venv-oldest PINS='torch==2.11.* torchvision==0.26.* torchaudio==2.11.*'

book: $(VENV)/.ready-test
	$(BIN)/python book/build.py

bench: $(VENV)/.ready-bench
	for file in benchmarks/*.py; do $(BIN)/python "$$file" || exit 1; done

lock: $(VENV)/.ready-test
	$(BIN)/python -m avssl.lock > lock.txt.part && mv lock.txt.part lock.txt

readme: $(VENV)/.ready-run
	$(BIN)/python -m avssl.readme

clean:
	rm -rf book/_build runs .pytest_cache .mypy_cache .ruff_cache .coverage*
