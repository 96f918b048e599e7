# make setup       installs what runs the pipeline, into .venv
# make repro       sets everything up, runs the pipeline and prints the results
# make check       lint, types, import rules and the quick tests: before a commit
# make test        lint, types, import rules and all tests, some of which run a small pipeline: before a merge
# make reproduce   runs the whole default pipeline twice, against the committed hashes and metrics
# make bench       compares this machine's speed with that of the usual libraries, in bench/results/cpu.md
# make faults      kills stages, deliveries and whole runs at many places, and repeats each; takes hours, needs strace
# make ui          shows all runs in MLflow
# make lock        resolves the dependencies again, into requirements.lock and requirements-dev.lock
SHELL := /bin/bash
PYTHON ?= python3
# This path is relative because the project's own path may contain a space, which would split words in a recipe.
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# The tests of one file share what they set up, so one process runs all of them.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile

.PHONY: setup dev repro lint check test reproduce bench faults ui lock

setup: .venv/.ready

# The same with the tools of tests and lint.
dev: .venv/.dev

# uv checks the lock's hashes. This runs again only if the lock or the project's own metadata changes.
define install
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: $$($(PYTHON) --version 2>&1 | head -1) is too old, or is not there; Python 3.11 or newer is needed:" \
	    "make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement docker/uv.txt
	$(if $(TORCH_INDEX),@awk '/^[a-z]/ {kept = $$0 !~ /^($(FOR_GPUS))==/} kept' $(1) | sed 's/^\(faiss-cpu==[^ ]*\) ;.*/\1 \\/' > .venv/cpu.lock)
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes $(if $(TORCH_INDEX),.venv/cpu.lock,$(1))
	$(if $(TORCH_INDEX),$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --index "$(TORCH_INDEX)" $$(grep -oE '^(torch|torchvision)==[^ ]+' $(1)))
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
endef
# make setup TORCH_INDEX=URL takes torch from another package index, such as one of wheels without CUDA, and leaves out
# what only a GPU needs. The hashes of torch and torchvision are not checked then.
FOR_GPUS := torch|torchvision|triton|nvidia-[a-z0-9-]*|cuda-[a-z]*|faiss-gpu

.venv/.ready: requirements.lock pyproject.toml
	$(call install,requirements.lock)
	@rm -f .venv/.dev
	@touch $@

.venv/.dev: requirements-dev.lock pyproject.toml
	$(call install,requirements-dev.lock)
	@touch .venv/.ready $@

repro: setup
	@test -e .git || test -e .dvc/config.local || { \
	    echo "error: this folder is no clone made by git, without which DVC runs nothing here; clone it, or run git init" >&2; \
	    exit 1; }
	@$(BIN)/scan settings check
	$(BIN)/dvc repro
	@$(BIN)/scan show

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(PYTEST) -m "not slow and not reproduction"

test: lint
	$(PYTEST)

# This takes about eight minutes on two cores.
reproduce: dev
	$(BIN)/pytest -m reproduction --durations=0

# Nothing else should run meanwhile. The libraries that are compared are installed into their own folder because
# pytorch-lightning contains a copy of lightning_fabric, and removing it would remove the pipeline's.
bench: dev
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target .venv/peers --no-deps kornia==0.9.0 kornia-rs==0.2.0 \
	    lightly==1.6.0 pytorch-lightning==2.6.6 torchmetrics==1.9.0
	$(BIN)/python -m bench

faults: dev
	$(BIN)/python -m tests.faults

ui: setup
	@$(BIN)/scan runs

# The locks have exact versions and hashes of every dependency on every platform, and name no package index.
LOCKED := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --custom-compile-command "make lock" --extra heic --extra build
lock: setup
	$(LOCKED) pyproject.toml --output-file requirements.lock
	$(LOCKED) --extra onnx --extra dev --constraint requirements.lock pyproject.toml --output-file requirements-dev.lock
