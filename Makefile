# Every target does its own set-up, and is quick when it is already done.
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/python
export PYTHONPATH := proto:.

.DEFAULT_GOAL := help
.PHONY: help serve demo test faults fuzz soak lint format proto bench clean

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

test: $(VENV)/.dev redis ## the whole test suite
	@$(RUN) -m pytest

faults: $(VENV)/.dev redis ## every fault, with load running; rewrites tests/faults/RESULTS.md
	@$(RUN) -m pytest tests/faults -m "faults or not faults" --table tests/faults/RESULTS.md

FUZZ_SECONDS ?= 600
fuzz: $(VENV)/.dev ## hostile input for FUZZ_SECONDS (600), and what it found under out/fuzz/
	@$(RUN) -m tests.fuzz --seconds $(FUZZ_SECONDS)

SOAK_MINUTES ?= 30
soak: $(VENV)/.dev redis ## mixed traffic for SOAK_MINUTES (30): memory, descriptors, latency
	@$(RUN) -m tests.soak --minutes $(SOAK_MINUTES)

# The tests want a real redis-server. Where it is absent and this user may install it, it is
# installed; elsewhere the tests that need it say so and skip.
.PHONY: redis
redis:
	@command -v redis-server > /dev/null || test "$$(id -u)" != 0 \
		|| { apt-get -qq update && apt-get -qq install --yes redis-server > /dev/null; } \
		|| echo "no redis-server could be installed: tests that need it skip"

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
