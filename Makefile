# Everything a checkout needs. `make help` lists the targets.
#
#   make demo ARGS="--data gsm8k.jsonl"   arguments for the command
#   make test PYTHON=python3.12           the interpreter that .venv is made from
#   make gpu-check PY=python3             an interpreter that has the dependencies: no .venv is made

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
ARGS ?=
WORKERS ?= 2

ifeq ($(origin PY),command line)
READY :=
SEEDMP = $(PY) -m seedmp
else
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
SEEDMP = $(VENV)/bin/seedmp
endif

# Whole files go to WORKERS processes, in the order of the folders: long ones first, small ones fill the end.
# Tests that measure time, and those that kill processes, follow by themselves (5: none was selected).
TOGETHER = $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not (gpu or chaos or alone)"
ALONE = $(PY) -m pytest -m "(chaos or alone) and not (gpu or long)"

.PHONY: help demo test check test-all bench bench-smoke profile gpu-check wheel typings clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# Made again when the metadata or the pinned versions change.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## solve a problem with a reasoning tree, compare the schedules (ARGS="--json FILE")
	$(SEEDMP) demo $(ARGS)

test: $(READY) ## all tests that need no GPU: unit, property, statistical, integration, chaos
	$(TOGETHER) tests $(ARGS)
	$(ALONE) tests $(ARGS) || test $$? -eq 5

check: $(READY) typings ## lint, format, types, unit and property tests: before each commit
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(TOGETHER) -q tests/unit tests/property $(ARGS)

test-all: export ARCHITECTURES = all
test-all: $(READY) typings ## make check's linters and every test, those for a GPU included
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(TOGETHER) tests $(ARGS)
	$(PY) -m pytest -m "gpu or chaos or alone" tests $(ARGS)

bench: $(READY) ## every benchmark, with plots and report.html, into build/bench (ARGS="--quick": minutes)
	$(SEEDMP) bench all --out build/bench $(ARGS)

bench-smoke: $(READY) ## the same with sizes of seconds: do they still run?
	$(SEEDMP) bench all --smoke --out build/bench-smoke $(ARGS)

profile: $(READY) ## where the time of a search goes, by process, into build/profile/ (ARGS="--limit 3")
	$(SEEDMP) profile --out build/profile -- solve gsm8k --limit 2 --fresh --out build/profile-solve.jsonl $(ARGS)

gpu-check: $(READY) ## on a GPU node: the tests marked gpu, then peers at the 7B shape
	$(PY) -m pytest -m gpu tests
	$(SEEDMP) bench peers --quick --shape 7b --out build/bench-7b $(ARGS)

wheel: $(READY) ## build the sdist, and from it the wheel, into dist/
	$(PY) -m build --outdir dist .

typings: ## the links that show the type checker where seedmp.benchmarks, .ipc and .workers lie
	@mkdir -p build/typings/seedmp
	@ln -sfn ../../../benchmarks build/typings/seedmp/benchmarks
	@ln -sfn ../../../ipc build/typings/seedmp/ipc
	@ln -sfn ../../../workers build/typings/seedmp/workers

clean: ## remove what was built and cached (not .venv)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
