# Every target sets up what it needs by itself; Python 3.11 or newer and make must be there.
# VENV=DIR puts the virtual environment elsewhere, PYTHON=PATH picks the interpreter,
# ARGS="--seed 1" is handed to the command.
VENV ?= .venv
export VENV

.DEFAULT_GOAL := help
.PHONY: help venv quickstart test coverage check clean

help: ## List the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

venv: $(VENV)/.installed ## Set up .venv with the development tools

$(VENV)/.installed: pyproject.toml scripts/venv
	scripts/venv "$(VENV)"

quickstart: venv ## Profile, train, search, distill, export and verify on this machine
	"$(VENV)/bin/nas" quickstart $(ARGS)

test: venv ## Run every test, slow ones included; say what is skipped and why
	scripts/test -m "" -rs --durations=25 $(ARGS)

coverage: venv ## Run every test and show the coverage; takes twice as long
	scripts/test -m "" -rs --cov --cov-report=term:skip-covered $(ARGS)

check: venv ## Check format, lint and types
	scripts/check

clean: ## Remove .venv and what tools cached; runs/ stays
	rm -rf "$(VENV)" .ci-venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* build dist
