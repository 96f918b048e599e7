# make repro       sets everything up, runs the pipeline and prints the results
# make check       lint, types, import rules and the quick tests: before a commit
# make test        lint, types, import rules and all tests, some of which run a small pipeline: before a merge
# make reproduce   runs the whole default pipeline twice, against the committed hashes and metrics
# make bench       compares this machine's speed with that of the usual libraries, in bench/results/cpu.md
# make ui          shows all runs in MLflow
# make lock        resolves the dependencies again, into requirements.lock
SHELL := /bin/bash
PYTHON ?= python3
# This path is relative because the project's own path may contain a space, which would split words in a recipe.
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# The tests of one file share what they set up, so one process runs all of them.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile

.PHONY: setup repro lint check test reproduce bench ui lock

setup: .venv/.ready

# uv checks the lock's hashes. This runs again only if the lock or the project's own metadata changes.
.venv/.ready: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement docker/uv.txt
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

repro: setup
	@$(BIN)/scan check
	$(BIN)/dvc repro
	@$(BIN)/scan show

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(PYTEST) -m "not slow and not reproduction"

test: lint
	$(PYTEST)

# This takes about eight minutes on two cores.
reproduce: setup
	$(BIN)/pytest -m reproduction --durations=0

# Nothing else should run meanwhile. The libraries that are compared are installed into their own folder because
# pytorch-lightning contains a copy of lightning_fabric, and removing it would remove the pipeline's.
bench: setup
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target .venv/peers --no-deps kornia==0.9.0 kornia-rs==0.2.0 \
	    lightly==1.6.0 pytorch-lightning==2.6.6 torchmetrics==1.9.0
	$(BIN)/python -m bench

ui: setup
	@$(BIN)/scan ui

# The lock has exact versions and hashes of every dependency on every platform, and names no package index.
lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --extra dev --custom-compile-command "make lock" pyproject.toml --output-file requirements.lock
