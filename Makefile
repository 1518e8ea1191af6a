# Every target does its own set-up, and is quick when it is already done.
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/python
export PYTHONPATH := proto:.

.DEFAULT_GOAL := help
.PHONY: help serve demo test lint format proto bench clean

help: ## this text
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# An environment whose Python does not run, or that was left half made, is made anew.
ifneq ($(shell $(RUN) -c 'print("runs")' 2> /dev/null),runs)
.PHONY: $(VENV)/.serve $(VENV)/.dev
endif
define install
@$(RUN) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
@echo "installing samclip[$(1)] into $(VENV): minutes the first time …"
@$(RUN) -m pip install --quiet --editable '.[$(1)]'
endef

$(VENV)/.serve: pyproject.toml
	$(call install,serve)
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(call install,dev)
	@touch $@ $(VENV)/.serve

serve: $(VENV)/.serve ## serve the bundled checkpoint until Ctrl-C
	@exec $(RUN) -m samclip.cli serve

demo: $(VENV)/.dev ## real photographs through every head; pictures under out/
	@$(RUN) -m samclip.cli demo

test: $(VENV)/.dev servers ## the whole test suite
	@OMP_WAIT_POLICY=passive $(RUN) -m pytest -n 2 --dist loadgroup

# The tests want a real redis-server and prometheus. What is absent is installed where this user
# may; elsewhere the tests that need it say so and skip.
.PHONY: servers
servers:
	@for name in redis-server prometheus; do \
		command -v $$name > /dev/null || test "$$(id -u)" != 0 \
			|| { apt-get -qq update && apt-get -qq install --yes --no-install-recommends $$name > /dev/null; } \
			|| echo "no $$name could be installed: tests that need it skip"; \
	done

lint: $(VENV)/.dev ## formatter, linter, type checker
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

format: $(VENV)/.dev ## rewrite the code in the project's format
	@$(RUN) -m ruff format .
	@$(RUN) -m ruff check --fix .

proto: $(VENV)/.dev ## regenerate the committed stubs
	@$(RUN) -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto \
		--grpc_python_out=proto proto/samclip/v1/samclip.proto

bench: $(VENV)/.dev ## benchmarks; tables, JSON and plots under out/bench/
	@$(RUN) -m tests.bench

clean: ## remove what set-up and runs have made
	rm -rf $(VENV) out runs build dist *.egg-info
