# Every target does its own set-up, and is quick when it is already done.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
export PYTHONPATH := proto:.

.DEFAULT_GOAL := help
.PHONY: help serve demo test lint format proto bench clean

help: ## this text
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.serve: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[serve]'
	@touch $@

$(VENV)/.dev: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.serve

serve: $(VENV)/.serve ## serve the bundled checkpoint until Ctrl-C
	@exec $(BIN)/samclip serve

demo: $(VENV)/.dev ## real photographs through every head; pictures under out/
	@$(BIN)/python -m tests.demo

test: $(VENV)/.dev ## the whole test suite
	@$(BIN)/python -m pytest

lint: $(VENV)/.dev ## formatter, linter, type checker
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/.dev ## rewrite the code in the project's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

proto: $(VENV)/.dev ## regenerate the committed stubs
	@$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto \
		--grpc_python_out=proto proto/samclip/v1/samclip.proto

bench: $(VENV)/.dev ## benchmarks; tables, JSON and plots under out/bench/
	@$(BIN)/python -m tests.bench

clean: ## remove what set-up and runs have made
	rm -rf $(VENV) out runs build *.egg-info
