# Everything runs in .venv, built on first use from pyproject.toml under constraints.txt.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TEST_PROCESSES ?= logical

.DEFAULT_GOAL := help
.PHONY: help train test check format clean

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

train: $(VENV)/installed ## Train the default experiment (ARGS="..." adds overrides)
	@$(BIN)/llm train $(ARGS)

test: $(VENV)/installed-dev ## Run the tests (ARGS="..." goes to pytest)
	@$(BIN)/python -m pytest -m "not alone and not long" -n $(TEST_PROCESSES) --maxprocesses 4 --dist worksteal $(ARGS)
	@$(if $(ARGS),true,$(BIN)/python -m pytest -m alone tests/test_speed.py)

check: $(VENV)/installed-dev ## Format, lint, types, import order
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

format: $(VENV)/installed-dev ## Rewrite the code in the house's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## Delete the environment and what tools left behind; outputs/ stays
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than Python 3.11: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/installed
