# make demo           the whole path on the source of Python's own standard library, in a few minutes
# make test           the tests                          make test-slow   those that take minutes as well
# make run CONFIG=configs/NAME.toml                      every stage of a config; stages that are done are skipped
# make results CONFIG=configs/NAME.toml                  trains it and keeps its figures: results/NAME.json, README's table
# make setup [GPU=1]  .venv with everything that requirements.lock names; GPU=1 adds TensorFlow's CUDA libraries
# make lint           ruff, mypy, and tsc for the page   make lock        resolve the requirements anew
# make clean          removes what the demo made

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo run evaluated results setup test test-slow lint lock clean

VENV := .venv
PY := $(VENV)/bin/python
UV := $(VENV)/tools/bin/uv
CONFIG ?= configs/stdlib.toml
NAME = $(shell basename "$(CONFIG)" .toml)
# Nothing of the project may write beside its sources.
export PYTHONDONTWRITEBYTECODE := 1

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

SETUP := scripts/setup.sh scripts/private_glibc.sh scripts/tools.lock

# A stamp a lock: made again when the lock changes, and not otherwise.
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

run: evaluated
	@$(PY) -m export savedmodel "runs/$(NAME)" --out "served/$(NAME)"
	@$(PY) -m export tflite "runs/$(NAME)" --out "devices/$(NAME)"
	@$(PY) -m export show "runs/$(NAME)" --served "served/$(NAME)" --devices "devices/$(NAME)"

results: evaluated
	@$(PY) -m bench results "runs/$(NAME)"

demo:
	@$(MAKE) --no-print-directory run CONFIG=configs/stdlib.toml

test: $(VENV)/.installed-dev
	$(PY) -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(PY) -m pytest

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	@if command -v npm > /dev/null; then \
		cd export/web && { [ -d node_modules/typescript ] || npm ci; } && npm run --silent check; \
	else echo "no npm: the types of the page are not checked"; fi

lock: setup
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header scripts/tools.txt -o scripts/tools.lock
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header -c scripts/constraints.txt \
		requirements.txt -o requirements.lock
	for extra in dev gpu; do \
		$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header -c requirements.lock \
			requirements-$$extra.txt -o requirements-$$extra.lock || exit 1; \
	done

clean:
	rm -rf data/stdlib runs/stdlib served/stdlib devices/stdlib
