# Everything the project does starts here. Needs git, make and Python 3.11 or newer; sets itself up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow check bench setup clean

demo: $(STAMP)  ## train a model on real text through the MCP server and look at everything it leaves
	$(BIN)/lab-mcp demo

test: $(STAMP)  ## all quick tests
	$(BIN)/python -P -m pytest -n 2 --dist loadfile

test-slow: $(STAMP)  ## crash rounds and tests against other real programs
	$(BIN)/python -P -m pytest -m slow -n 2 --dist loadfile

check: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## the figures of docs/benchmarks.md
	$(BIN)/python benchmarks/latency.py --write
	$(BIN)/python benchmarks/memory.py --write
	$(BIN)/python benchmarks/retrieval.py --write
	$(BIN)/python benchmarks/ledger.py --write
	$(BIN)/python benchmarks/indexing.py --write
	$(BIN)/python benchmarks/campaigns.py --write
	$(BIN)/python benchmarks/runs.py --write
	$(BIN)/python benchmarks/verdicts.py --write
	$(BIN)/python benchmarks/training_speed.py --write
	$(BIN)/python benchmarks/training_costs.py --write
	$(BIN)/python benchmarks/learning.py --write
	$(BIN)/python benchmarks/tool_use.py --load --write

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lab-mcp needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

clean:  ## remove what setup and tests made (not your workspaces)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
