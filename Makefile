.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The wheel and the documentation are built without torch where the complete environment is not installed.
LIGHT_VENV := $(if $(wildcard $(VENV)/.installed),$(VENV),.venv-light)
check_python = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is missing or older than Python 3.11. Set PYTHON to a newer one, such as PYTHON=/usr/bin/python3.11" >&2; exit 1; }
TEST_TOOLS := etcd kube-apiserver kubectl kube-controller-manager kube-scheduler kwok helm3 helm prometheus promtool collector argocd-refreshes
QUICK_TOOLS := $(TEST_TOOLS) kubelet kube-proxy coredns kube-router cert-manager

.PHONY: help install demo test lint fuzz format tools-api tools cluster e2e e2e-cluster cluster-down chart-docs monitoring crds reasons metrics checks reference docs pictures images kind-images release dist base-image sbom requirements attack zoo bench nat-lab clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Install everything into .venv (about 6 GB, because torch brings its CUDA libraries)

$(VENV)/.installed: requirements/dev.txt pyproject.toml
	$(check_python)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: install ## Train a digit classifier over a Hypha network on this machine (3 minutes), or with MODEL=causal-lm a language model
	@$(BIN)/hypha-devnet demo $(if $(MODEL),--model $(MODEL))

test: install tools-api lint ## Lint, type-check and run every test, JOBS at once (three for two cores, because tests also wait)
	$(BIN)/pytest -n $(or $(JOBS),$(shell expr $$(nproc) \* 3 / 2)) -m "not alone"
	$(BIN)/pytest -m alone

lint: install ## Check style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: install ## Fuzz every decoder, each for FUZZ_SECONDS (80) or FUZZ_RUNS executions, JOBS at once (2); findings in .fuzz/
	PYTHONPATH=tests $(BIN)/python -m fuzz.harness --seconds $(or $(FUZZ_SECONDS),80) --runs $(or $(FUZZ_RUNS),-1) --jobs $(or $(JOBS),2)

format: install ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## Measure performance; HYPHA_BIN=DIR, the directory of the Rust nodes' binaries, adds them for comparison
	$(BIN)/python -m benchmarks

zoo: install ## Train a tiny model of every type with two trainers, and compare it with one process; FAMILIES="llama ctc" chooses some
	PYTHONPATH=tests $(BIN)/python -m zoo $(FAMILIES)

attack: install ## Attack a node with a hundred peers for ATTACK_S seconds, by default 600; ATTACK_PROFILE=1 profiles the node
	ATTACK_S=$${ATTACK_S:-600} $(BIN)/pytest tests/system/test_every_attack_at_once.py

nat-lab: install ## As root: run a job behind each kind of NAT, and print a table; HYPHA_BIN=DIR adds the Rust nodes, CASES="all kept" selects
	PYTHONPATH=tests $(BIN)/python -m nat_table $(CASES)

tools-api: install ## Build the programs that the tests need into .tools, such as the API server (12 minutes the first time)
	@$(BIN)/python -m e2e.cluster.tools $(TEST_TOOLS)

tools: install ## Build all programs of a cluster, helm and Prometheus into .tools (17 minutes the first time)
	@$(BIN)/python -m e2e.cluster.tools $(if $(QUICK),$(QUICK_TOOLS))

cluster: tools ## As root: start a Kubernetes cluster of one node on this machine, or repair it
	@$(BIN)/python -m e2e.cluster up

e2e: install ## Install the chart on that cluster or KUBECONFIG's, train a model, and test faults; QUICK=1 leaves out long cases
	@test -n "$$KUBECONFIG$$E2E_CONTEXT" || $(MAKE) --no-print-directory e2e-cluster
	$(BIN)/pytest -c e2e/pytest.ini e2e/cases $(if $(QUICK),-m "not long")

e2e-cluster: cluster
	@command -v buildah >/dev/null && command -v debootstrap >/dev/null || apt-get install -y -qq --no-install-recommends buildah debootstrap
	@$(MAKE) --no-print-directory base-image images BASE=localhost/hypha/base:debian TORCH=cpu CONTAINER_TOOL=buildah

cluster-down: install ## Remove the cluster, its processes and its files
	@$(BIN)/python -m e2e.cluster down

chart-docs: install ## Write the table of values into the chart's README
	@$(BIN)/python charts/chart_docs.py

monitoring: install ## Write the chart's dashboards and alerts, and the table of docs/monitoring.md
	@$(BIN)/python -m charts.monitoring

pictures: install ## Draw the pictures of the documentation that need no cluster; chromium takes those of the status page
	PYTHONPATH=tests $(BIN)/python -m pictures

crds: install ## Write crds/, the chart's CRD templates and the tables of docs/hyphaworker.md from the models
	$(BIN)/python -m hypha_resources
	$(BIN)/python -m hypha_resources --chart
	$(BIN)/python -m hypha_resources.reference docs/hyphaworker.md

reasons: install ## Write the tables of reasons in docs/conditions.md
	$(BIN)/python -m hypha_contracts.reasons_page docs/conditions.md

checks: install ## Write the tables of checks in docs/troubleshooting.md and docs/kubectl.md
	$(BIN)/python -m hypha_worker.doctor.page docs/troubleshooting.md
	$(BIN)/python -m hypha_kubectl.checks.page docs/kubectl.md

reference: install ## Write docs/cli.md, docs/bridge-api.md and docs/configuration.md from the programs
	$(BIN)/python -m documentation.reference

docs: $(LIGHT_VENV)/.installed ## Build the site of the documentation into build/docs/site, and list its commands with the tests that run them
	@$(LIGHT_VENV)/bin/python -m documentation.commands
	@$(LIGHT_VENV)/bin/python -m documentation.site

metrics: install ## Write the tables of metrics in docs/telemetry.md
	$(BIN)/python -m hypha_telemetry.catalogue docs/telemetry.md

images: install ## Build the container images that changed; docs/images.md explains PLATFORM, CONTAINER_TOOL, BASE, TORCH, REGISTRY, TAG
	@$(BIN)/python -m images.build

kind-images: install ## Build the images for CPUs and load them into the kind cluster KIND_CLUSTER (kind)
	@TORCH=cpu $(BIN)/python -m images.build --archive
	@for archive in .images/*.tar; do kind load image-archive "$$archive" --name "$(or $(KIND_CLUSTER),kind)" || exit; done

release: install ## Build the images, push them to REGISTRY, and package wheel and chart with their digests; DRY_RUN=1 prints the steps
	@$(BIN)/python -m images.release $(if $(DRY_RUN),--dry-run)

dist: $(LIGHT_VENV)/.installed ## Build the wheel, the source archive and the chart's archive into dist/, reproducibly and with checksums
	@$(LIGHT_VENV)/bin/python -m images.dist

.venv-light/.installed: requirements/light.txt
	$(check_python)
	$(PYTHON) -m venv .venv-light
	.venv-light/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/light.txt
	@touch $@

sbom: install ## Write a bill of materials (CycloneDX) of each image and of the wheel to .images/sbom
	@$(BIN)/python -m images.sbom

base-image: install ## Build the base image localhost/hypha/base:debian from Debian's packages, if you can reach no image registry
	@$(BIN)/python -m images.build base

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	--no-emit-find-links --override requirements/overrides.in

requirements: install ## Compile requirements/*.txt from pyproject.toml
	$(COMPILE) --extra dev pyproject.toml -o requirements/dev.txt
	$(COMPILE) requirements/go.in -o requirements/go.txt
	$(COMPILE) --constraint requirements/dev.txt requirements/light.in -o requirements/light.txt
	for extra in node operator worker kubectl bridge devnet parameter-server trainer; do \
	  $(COMPILE) --constraint requirements/dev.txt --extra $$extra pyproject.toml -o requirements/$$extra.txt || exit; done

clean: ## Remove everything that the other targets created
	@test ! -e .cluster || $(MAKE) cluster-down
	rm -rf $(VENV) .venv-light .tools .fuzz .images demo-output try e2e-output build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
