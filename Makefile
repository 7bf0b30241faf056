# Every target sets up what it needs: a virtual environment from the hash-pinned requirements, nothing global.
PYTHON ?= python3
VENV   ?= .venv
REPO   ?= .
# Most tests wait for processes more than they compute: a little more than two cores' worth.
WORKERS ?= 3
BIN    := $(VENV)/bin
RUN    := $(BIN)/python -m

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-full lint bench soak docs build lock clean

help: ## Show this page
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

# The stamps are named after the lock files: an unchanged lock installs nothing.
$(VENV)/.runtime: requirements/runtime.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "avyay needs Python 3.11 or later; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned requirements into $(VENV): about a minute, 1 GB on disk."
	@$(RUN) pip install --quiet --disable-pip-version-check --require-hashes -r requirements/runtime.txt
	@$(RUN) pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.development: $(VENV)/.runtime requirements/development.txt
	@$(RUN) pip install --quiet --disable-pip-version-check --require-hashes -r requirements/development.txt
	@touch $@

quickstart: $(VENV)/.runtime ## Install, then index, ask, route and scan REPO (default: this repository), offline
	@$(if $(filter .,$(REPO)),AVYAY_CONFIG=avyay.yaml) $(BIN)/avyay quickstart $(REPO)

# Many tests start, stop and kill real processes; on a machine that stalls, one may run into its bound. What failed is run
# once more, alone: only what fails twice fails, and both runs are printed.
test: $(VENV)/.development ## Run the tests; needs Python, git and make, and lists what it had to leave out
	$(RUN) pytest -rs -n $(WORKERS) --dist loadfile || $(RUN) pytest -v --last-failed --last-failed-no-failures none

test-full: $(VENV)/.development ## Install what Debian and npm offer, then run every test
	scripts/install_test_tools
	AVYAY_TEST_FULL=1 $(RUN) pytest -rs -n $(WORKERS) --dist loadfile

lint: $(VENV)/.development ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.development ## Measure; prints ratios against a peer or a floor of the same run
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python -P $$file || exit 1; done

soak: $(VENV)/.development ## The long runs: crashes, races, endurance
	$(RUN) pytest -rs -m soak --no-header

docs: $(VENV)/.development ## Generate docs/reference from the code
	$(BIN)/python scripts/generate_reference.py

build: $(VENV)/.development ## Build wheel and source archive, reproducibly, with an SBOM
	scripts/build_release

lock: $(VENV)/.development ## Resolve the dependencies anew
	scripts/lock_requirements

clean: ## Remove the environment and everything generated
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
