# make repro   sets everything up and runs the pipeline
# make test    sets everything up and runs lint, types, import rules, unit tests and a small pipeline
# make bench   measures this machine beside the usual libraries, into bench/results/cpu.md
SHELL := /bin/bash
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)

.PHONY: setup repro test lint reproduce bench ui lock

setup: .venv/.ready

# Filled from the lock with hashes checked; done again only when the lock or the project's own metadata changes.
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

# Files are shared out among processes: what a file's tests share is made once.
test: lint
	$(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile

# The whole default pipeline, twice, against the committed hashes and metrics: about eight minutes on two cores.
reproduce: setup
	$(BIN)/pytest -m reproduction --durations=0

# With nothing beside it. The peers lie in a folder of their own: pytorch-lightning brings its own lightning_fabric, and
# would take ours away when it goes.
bench: setup
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target .venv/peers --no-deps kornia==0.9.0 kornia-rs==0.2.0 \
	    lightly==1.6.0 pytorch-lightning==2.6.6 torchmetrics==1.9.0
	$(BIN)/python -m bench

ui: setup
	@$(BIN)/scan ui

# Exact versions and hashes of every dependency on every platform, without an index address.
lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --extra dev --custom-compile-command "make lock" pyproject.toml --output-file requirements.lock
