# Every target does its own set-up, and is quick when it is already done.
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/python
export PYTHONPATH := client:.

.DEFAULT_GOAL := help
.PHONY: help serve demo test cluster faults fuzz soak lint format proto bench lock audit clean

help: ## this text
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# An environment whose Python does not run, or that was left half made, is made anew.
ifneq ($(shell $(RUN) -c 'print("runs")' 2> /dev/null),runs)
.PHONY: $(VENV)/.serve $(VENV)/.dev
endif
define environment
@$(RUN) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
@echo "installing samclip[$(1)] into $(VENV): $(2) the first time …"
endef
PIP := $(RUN) -m pip install --quiet

# uv takes 15 s where pip takes 42. It does not read pip's settings, so pip itself installs where
# these name another index, or where uv fails.
$(VENV)/.serve: pyproject.toml
	$(call environment,serve,a minute)
	@{ ! $(RUN) -m pip config list | grep -q index && $(PIP) uv && $(RUN) -m uv pip install \
		--quiet --compile-bytecode --python $(RUN) --editable '.[serve]'; } \
		|| $(PIP) --editable '.[serve]'
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(call environment,dev,minutes)
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.serve

serve: $(VENV)/.serve ## serve the bundled checkpoint until Ctrl-C
	@exec $(RUN) -m samclip.cli serve

demo: $(VENV)/.dev ## real photographs through every head; pictures under out/
	@$(RUN) -m samclip.cli demo

test: $(VENV)/.dev tools ## the whole test suite
	@GOMP_SPINCOUNT=1000 $(RUN) -m pytest -n 2 --max-worker-restart 0

faults: $(VENV)/.dev tools ## every fault, with load running; rewrites tests/faults/RESULTS.md
	@$(RUN) -m pytest tests/faults -m "faults or not faults" --table tests/faults/RESULTS.md

FUZZ_SECONDS ?= 600
fuzz: $(VENV)/.dev ## hostile input for FUZZ_SECONDS (600), and what it found under out/fuzz/
	@$(RUN) -m tests.fuzz --seconds $(FUZZ_SECONDS)

SOAK_MINUTES ?= 30
soak: $(VENV)/.dev tools ## mixed traffic for SOAK_MINUTES (30): memory, descriptors, latency
	@$(RUN) -m tests.soak --minutes $(SOAK_MINUTES)

# The tests want these packages of Debian. Where one is absent and this user may install it, it is
# installed; elsewhere the tests that need it say so and skip.
TOOLS := redis-server prometheus docker-compose kustomize wget faketime
.PHONY: tools
tools:
	@for tool in $(TOOLS); do command -v $$tool > /dev/null || test "$$(id -u)" != 0 \
		|| { apt-get -qq update && apt-get -qq install --yes --no-install-recommends $$tool > /dev/null; } \
		|| echo "no $$tool could be installed: tests that need it skip"; done

cluster: $(VENV)/.dev ## serve deploy on two nodes, a swap, a node killed: minutes, as root
	@TEST_CLUSTER=1 unshare --net --mount --pid --fork --kill-child --mount-proc \
		$(RUN) -m pytest tests/e2e/test_cluster.py -s

lint: $(VENV)/.dev ## formatter, linter, type checker
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

format: $(VENV)/.dev ## rewrite the code in the project's format
	@$(RUN) -m ruff format .
	@$(RUN) -m ruff check --fix .

proto: $(VENV)/.dev ## regenerate the committed stubs
	@$(RUN) -m grpc_tools.protoc -I proto --python_out=client --pyi_out=client \
		--grpc_python_out=client proto/samclip/v1/samclip.proto

bench: $(VENV)/.dev ## benchmarks (ARGS="--help"); tables, JSON and plots under out/bench/
	@$(RUN) -m benchmarks $(ARGS)

# The tools of the next two, in an environment of their own.
AUDIT := $(VENV)/audit/bin
$(AUDIT):
	@$(PYTHON) -m venv $(VENV)/audit
	@$(AUDIT)/python -m pip install --quiet uv pip-audit pip-licenses cyclonedx-bom

# torch, and the libraries that it brings for GPUs, depend on the machine and are not in it.
lock: $(AUDIT) ## pin what the service needs but torch, with hashes: requirements.lock
	@$(AUDIT)/uv pip compile pyproject.toml --extra serve --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-emit-index-url --custom-compile-command "make lock" \
		--no-emit-package torch --no-emit-package torchvision --quiet \
		| awk '/^[a-z]/ {keep = !/^(nvidia|cuda|triton)/} keep || /^#/' > requirements.lock

audit: $(VENV)/.serve $(AUDIT) ## what is installed: bill of materials, licences (out/audit/), known holes
	@mkdir -p out/audit
	@$(AUDIT)/cyclonedx-py environment $(RUN) --output-file out/audit/sbom.json
	@$(AUDIT)/pip-licenses --python $(RUN) --format markdown --with-urls \
		--output-file out/audit/licences.md
	@$(AUDIT)/pip-audit --skip-editable --desc \
		--path "$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

clean: ## remove what set-up and runs have made
	rm -rf $(VENV) out runs build dist *.egg-info
