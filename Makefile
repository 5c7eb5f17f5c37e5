PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test nodes check lock

help: ## What can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(READY) ## The main job on handwritten digits, from nothing to a promoted model
	@$(BIN)/headstart data ingest digits
	@$(BIN)/headstart retrain flows/plans/demo.yaml

test: $(READY) ## The tests, failures caused on purpose included
	@$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

nodes: $(READY) ## Nights on two machines without a common folder, and with a storage in a bucket; needs root and radosgw
	@$(BIN)/python -m pytest -m nodes tests/integration

check: $(READY) ## Style, types, walls and documents
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@MYPYPATH=tests/benchmarks $(BIN)/mypy --explicit-package-bases tests/benchmarks/*.py
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m pytest --timeout 60 tests/documents

lock: $(READY) ## Resolve again; no index address enters the lock
	@$(BIN)/uv pip compile pyproject.toml --extra flows --group dev --universal --python-version 3.11 --upgrade --quiet \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header -o infra/requirements.lock

# The lock's own lines for uv install uv; uv installs the rest, every file checked against its hash.
$(READY): infra/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Headstart needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}. Name another: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo "Setting up .venv (about 6 GB, most of it PyTorch)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@sed -n '/^uv==/,/[^\\]$$/p' infra/requirements.lock > .venv/uv.lock
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .venv/uv.lock
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes infra/requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
