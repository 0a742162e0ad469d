# make demo           the whole path on the source of Python's own standard library, in a few minutes
# make test           the tests, in ten minutes          make test-fast  those that need no TensorFlow, in a minute
# make test-gpu       those that need a GPU              make test-slow  the slow tests only
# make test-faults    kills, damage, full disks and hostile input, recorded in results/faults.json
# make lint           ruff, mypy, and tsc for the page
# make run CONFIG=configs/NAME.toml                      every stage of a config; finished stages are skipped
# make results CONFIG=configs/NAME.toml                  train it and keep its figures: results/NAME.json, docs/results.md
# make learn          execute the notebooks of docs/learn, and make their pages
# make site [SERVE=1] the trained models of models/ as one page for the browser: site/all; needs no set-up, but npm
# make setup [GPU=1]  create .venv from requirements.lock; GPU=1 adds TensorFlow's CUDA libraries
# make lock           resolve the requirements again     make clean      remove the demo's output
# make audit          known vulnerabilities, licences (docs/dependencies.md) and an SBOM (sbom.json)

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo run evaluated savedmodel tflite results learn site setup lint lock clean
.PHONY: test test-fast test-slow test-gpu test-faults audit

VENV := .venv
PY := $(VENV)/bin/python
UV := $(VENV)/tools/bin/uv
CONFIG ?= configs/stdlib.toml
NAME = $(shell basename "$(CONFIG)" .toml)

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

SETUP := scripts/setup.sh scripts/private_glibc.sh scripts/tools.lock

# One stamp per lock, so that packages are installed again only when a lock changes.
$(VENV)/.installed: requirements.lock $(SETUP)
	@scripts/setup.sh $(VENV) requirements.lock
	@touch $@

$(VENV)/.installed-%: requirements-%.lock $(VENV)/.installed
	@scripts/setup.sh $(VENV) $<
	@touch $@

setup: $(VENV)/.installed $(if $(GPU),$(VENV)/.installed-gpu)

evaluated: setup
	@$(PY) -m pipeline ingest --config "$(CONFIG)"
	@$(PY) -m pipeline validate --config "$(CONFIG)"
	@$(PY) -m trainers train "$(CONFIG)"
	@$(PY) -m trainers evaluate "runs/$(NAME)"

# The two exports side by side: each has one core's work.
run: evaluated
	@echo "exporting to served/$(NAME) and devices/$(NAME)"
	@$(MAKE) --no-print-directory -j 2 --output-sync=target savedmodel tflite
	@$(PY) -m export show "runs/$(NAME)" --served "served/$(NAME)" --devices "devices/$(NAME)"

savedmodel:
	@$(PY) -m export savedmodel "runs/$(NAME)" --out "served/$(NAME)"

tflite:
	@$(PY) -m export tflite "runs/$(NAME)" --out "devices/$(NAME)"

results: evaluated
	@$(PY) -m bench results "runs/$(NAME)"

learn: $(VENV)/.installed-dev
	$(PY) scripts/notebooks.py

# The page's build imports few packages, so it does not wait for the whole set-up.
site/.venv/.installed: requirements-site.lock
	@$(or $(PYTHON),python3) -m venv site/.venv
	@site/.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		--only-binary :all: -r $<
	@touch $@

# The page opens with the first model.
site: FIRST = models/shakespeare/
site: site/.venv/.installed
	@site/.venv/bin/python -m export web $(FIRST) $(filter-out $(FIRST),$(sort $(wildcard models/*/))) --out site/all --force $(if $(SERVE),--serve)

demo:
	@$(MAKE) --no-print-directory run CONFIG=configs/stdlib.toml

# Three workers on two cores: tests also wait for processes and browsers.
test: $(VENV)/.installed-dev
	$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

test-fast: $(VENV)/.installed-dev
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --fast -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(PY) -m pytest -m slow

test-gpu: $(VENV)/.installed-dev $(VENV)/.installed-gpu
	$(PY) -m pytest -m gpu tests/gpu

test-faults: $(VENV)/.installed-dev
	$(PY) -m pytest -n 2 -m faults tests/faults --record results/faults.json
	$(PY) -m bench results

# Tools in a separate environment, since nothing here imports them.
$(VENV)/audit/.installed: requirements-audit.lock $(VENV)/.installed
	@$(PY) -m venv $(VENV)/audit
	@$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		--only-binary :all: -r requirements-audit.lock
	@touch $@

audit: $(VENV)/.installed-dev $(VENV)/audit/.installed
	$(VENV)/audit/bin/cyclonedx-py environment --output-reproducible -o sbom.json $(PY)
	$(PY) scripts/licences.py sbom.json > docs/dependencies.md
	for lock in requirements.lock requirements-dev.lock requirements-gpu.lock; do \
		$(VENV)/audit/bin/pip-audit --strict --progress-spinner off --disable-pip --require-hashes -r $$lock || exit 1; \
	done

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	@if command -v npm > /dev/null; then \
		cd export/web && { [ -d node_modules/typescript ] || npm ci; } && npm run --silent check; \
	else echo "npm is missing: the page's types were not checked"; fi

lock: setup
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header scripts/tools.txt -o scripts/tools.lock
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header requirements-audit.txt \
		-o requirements-audit.lock
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header -c scripts/constraints.txt \
		--override scripts/overrides.txt requirements.txt -o requirements.lock
	for extra in site dev gpu; do \
		$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header -c requirements.lock \
			--override scripts/overrides.txt requirements-$$extra.txt -o requirements-$$extra.lock || exit 1; \
	done

clean:
	rm -rf data/stdlib runs/stdlib served/stdlib devices/stdlib
