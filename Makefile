# Every target does its own set-up first. `make help` lists them.
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Tests of a file share a server; ARGS="-n 0" runs all in one process, as a debugger needs it.
SPREAD := -n logical --dist loadfile

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help serve install test coverage test-long check bench format clean
.DEFAULT_GOAL := help

help: ## Lists the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

serve: $(VENV)/.installed ## Starts the server on http://localhost:5006 (PORT= changes it)
	@exec $(BIN)/ai-server serve --pull-models $(ARGS)

install: $(VENV)/.installed ## Sets everything up and starts nothing

test: $(VENV)/.dev node_modules/.installed ## Runs the test suite
	scripts/system.sh
	$(BIN)/python -m pytest -m "not long" $(SPREAD) $(ARGS)

# Apart, because counting lines makes the suite take half as long again.
coverage: $(VENV)/.dev node_modules/.installed ## Runs the test suite and says what it does not reach
	scripts/system.sh
	$(BIN)/coverage erase
	$(BIN)/python -m pytest -m "not long" $(SPREAD) --cov --cov-report=term:skip-covered --cov-fail-under=85 $(ARGS)

test-long: $(VENV)/.dev node_modules/.installed ## Runs what takes minutes: soak, fuzz, kill -9
	scripts/system.sh
	$(BIN)/python -m pytest -m long $(ARGS)

check: $(VENV)/.dev node_modules/.installed ## Format, lint, types, import rules, fresh docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	node_modules/.bin/pyright
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/docs.py --check

bench: $(VENV)/.dev ## Runs the benchmarks of bench/
	$(BIN)/python -m bench $(ARGS)

format: $(VENV)/.dev ## Formats the code and mends what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python scripts/docs.py

clean: ## Removes what was set up, never App_Data
	rm -rf $(VENV) node_modules

# A lock holds every package with its hash, so pip resolves nothing.
$(VENV)/.installed: requirements/serve.lock pyproject.toml
	@test -x $(BIN)/python || "$${PYTHON:-$$(scripts/python.sh)}" -m venv $(VENV)
	@echo "Installing AI Server into $(VENV) ..."
	@$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements/serve.lock
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.installed
	@$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements/dev.lock
	@touch $@

node_modules/.installed: package-lock.json
	@npm ci --silent --no-fund --no-audit
	@touch $@
