# Bare `make` prints what there is. Every target sets up what it needs first; slow things are cached outside the checkout.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PORT ?= 8080
DOCKER ?=
IMAGES ?=
ARGS ?=

CACHE := $(or $(DARKROOM_CACHE),$(HOME)/.cache/darkroom)
# A uv that answers, or the one `make setup` puts into the cache (a pyenv shim may be there and not answer).
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo "$(CACHE)/uv/bin/uv")
RUN := $(UV) run --no-sync
READY := .venv/.ready

# Weights and test images of your own: used when they lie beside the checkout and nothing else is set.
ifneq ($(wildcard ../shared/data/models),)
export DARKROOM_MODELS__DIR ?= $(abspath ../shared/data/models)
endif
ifneq ($(wildcard ../shared/data),)
export DARKROOM_TEST_DATA ?= $(abspath ../shared/data)
endif

.PHONY: help setup services demo up test test-unit coverage fuzz check format bench e2e faults faults-short docs clean

help: ## print this
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## install everything (quick when nothing changed)

$(READY): uv.lock pyproject.toml infra/setup.sh
	@DARKROOM_UV="$(UV)" infra/setup.sh
	@touch $@

demo: setup ## send real photos through the whole pipeline and show the results (IMAGES=dir for your own)
	$(RUN) darkroom demo $(if $(IMAGES),--images "$(IMAGES)") $(ARGS)

up: ## run everything until Ctrl-C on http://127.0.0.1:$PORT (PORT=8080; DOCKER=1 uses the compose file)
ifeq ($(DOCKER),)
	@$(MAKE) --no-print-directory setup
	$(RUN) darkroom up --port $(PORT) $(ARGS)
else
	@docker info >/dev/null 2>&1 || { echo "DOCKER=1 needs a Docker engine that runs: \`docker info\` fails. Without it: make up" >&2; exit 1; }
	DARKROOM_PORT=$(PORT) docker compose -f infra/compose.yaml up --build $(ARGS)
endif

services: setup ## download Kafka and build MinIO into the cache, once
	@$(RUN) python -m infra.local install --minio

test: setup services ## all tests, in parallel: on real Kafka, real MinIO, real images
	$(RUN) python -m tests $(ARGS)

test-unit: setup ## the tests that start no service
	$(RUN) pytest -n 2 --dist loadgroup tests/unit $(ARGS)

coverage: setup services ## lines and branches that the unit and security tests cover, per module
	$(RUN) pytest -n 2 --dist loadgroup --cov --cov-report=term:skip-covered tests/unit tests/security $(ARGS)

e2e: setup services ## only the tests of the whole pipeline, every agent its own process
	$(RUN) pytest tests/e2e $(ARGS)

faults: setup services ## break everything for 20 minutes under 2,000 uploads, and balance the books (ARGS="--seed 7")
	$(RUN) python -m tests.storm $(ARGS)

faults-short: setup services ## the same in a few minutes, as CI runs it
	$(RUN) python -m tests.storm --short $(ARGS)

fuzz: setup services ## ask a running gateway what its API document says, at length (ARGS="--max-time 3600")
	DARKROOM_FUZZ="$(or $(ARGS),--max-examples 100)" $(RUN) pytest -s tests/contracts/test_schemathesis.py

check: setup ## format, lint, types, import rules, deployment files, generated documents
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) python -m infra.validate
	$(RUN) python -m darkroom.generate.docs --check
	$(RUN) python -m darkroom.generate.deployment --check

format: setup ## format the code and fix what ruff can
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench: setup ## measure, against a baseline in the same run; prints and saves a table
	$(RUN) python -m bench $(ARGS)

docs: setup ## write the generated documents and deployment files again
	$(RUN) python -m darkroom.generate.docs
	$(RUN) python -m darkroom.generate.deployment

clean: ## remove data, logs and caches of this checkout (not the cache shared by all)
	rm -rf .darkroom .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage dist
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
