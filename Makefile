# Two commands set everything up on a fresh machine with Python >= 3.10 and PyPI: `make demo` and `make test`.
# An active virtual environment is used as it is; otherwise .venv is made.

PYTHON3 ?= python3
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
MINUTES ?= 8
DEMO_ARGS ?=
TEST_ARGS ?=
TRIALS_ARGS ?=

.PHONY: demo test quick trials lint gpu-check bench-report reference clean

demo: $(VENV)/.adadistill-base
	$(BIN)/python -m adadistill.recipes.demo $(DEMO_ARGS)

test: $(VENV)/.adadistill-dev
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

# The inner loop: every file that starts no process, trains no network and reads no golden cases.
quick: $(VENV)/.adadistill-dev
	$(BIN)/python -m pytest -n auto --quick $(TEST_ARGS)

# Damage done on purpose, many times, and what held: docs/reliability.md.
trials: $(VENV)/.adadistill-dev
	PYTHONPATH=$(CURDIR)/tests:$(PYTHONPATH) $(BIN)/python -m trials $(TRIALS_ARGS)

lint: $(VENV)/.adadistill-dev .typecheck/adadistill
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .typecheck/adadistill/core .typecheck/adadistill/kernels .typecheck/adadistill/loaders \
		.typecheck/adadistill/recipes .typecheck/adadistill/bench

# GPU tests, then every bench by priority, within MINUTES; uses the environment's own python, which has CUDA.
gpu-check: .typecheck/adadistill
	PYTHONPATH=$(CURDIR)/.typecheck:$(PYTHONPATH) $(PYTHON3) -m adadistill.bench.gpu_check --minutes $(MINUTES)

# README's figures, and tables and a page from the rows in bench/results.
bench-report: $(VENV)/.adadistill-dev
	$(BIN)/python -m adadistill.bench report --readme README.md
	mkdir -p runs/bench
	$(BIN)/python -m adadistill.bench report --markdown runs/bench/report.md --html runs/bench/report.html

reference: $(VENV)/.adadistill-base
	$(BIN)/python -m adadistill.recipes.recipe_reference docs/recipe_reference.md
	$(BIN)/python -m adadistill.recipes.recipe_catalogue docs/recipes.md

$(VENV)/bin/python:
	$(PYTHON3) -c 'import sys; sys.exit("Python >= 3.10 is needed, this is " + sys.version if sys.version_info < (3, 10) else 0)'
	$(PYTHON3) -m venv $(VENV)

$(VENV)/.adadistill-base: setup.py pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing adadistill into $(VENV) with matplotlib (torch is the large part)"
	$(PIP_INSTALL) -e '.[report]'
	@touch $@

$(VENV)/.adadistill-dev: setup.py pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing adadistill with its test tools, DALI, onnxruntime and matplotlib into $(VENV)"
	$(PIP_INSTALL) -e '.[dev,dali13,onnx,arrow,report]'
	@touch $@ $(VENV)/.adadistill-base

# Type checkers cannot follow setup.py's folder mapping; this is what they search instead.
.typecheck/adadistill:
	mkdir -p $@
	for folder in core kernels loaders recipes bench; do ln -sfn ../../$$folder $@/$$folder; done

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .typecheck
