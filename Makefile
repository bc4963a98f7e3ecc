# make demo: set up and run the embedded model on examples/inputs. make test: set up, lint, type-check, test.
# Needs Python 3.11 or newer with venv; no root, no GPU. PYTHON=python3.12 make demo picks another interpreter.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := pyproject.toml constraints.txt Makefile
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

# The numbers of the reference implementations were computed with this Pillow, whose resizing differs from older ones. Gradio asks
# for an older one, but works with it: tests install it over the one that constraints.txt has for Gradio's sake.
PILLOW := pillow==13.0.0

.DEFAULT_GOAL := help
.PHONY: help demo web test lint docs parity clean

help:
	@echo "make demo    set up, then caption, ask, extract, ground and read the pictures in examples/inputs"
	@echo "make web     set up, then open the browser front end (pocket on 127.0.0.1:7860)"
	@echo "make test    set up, then ruff, mypy and pytest"
	@echo "make lint    ruff and mypy only"
	@echo "make docs    set up, then build the documentation site into out/docs; any warning or broken link fails"
	@echo "make parity  compare with numbers of the reference implementations, a line per case (../shared, or PARITY_ROOT)"
	@echo "make clean   remove the environment, caches and out/"

$(BIN)/python:
	@echo "creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV)

# The stamps stand for "installed since these files last changed": a second run starts at once.
$(VENV)/run.stamp: $(STAMP) | $(BIN)/python
	@echo "installing the project into $(VENV) (PyTorch is the large part)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/dev.stamp: $(STAMP) | $(BIN)/python
	@echo "installing the project and its test tools into $(VENV) (PyTorch is the large part)"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/run.stamp

$(VENV)/web.stamp: $(STAMP) | $(BIN)/python
	@echo "installing the project and its browser front end into $(VENV) (PyTorch is the large part)"
	@$(PIP) --editable '.[demo]'
	@touch $@ $(VENV)/run.stamp

$(VENV)/docs.stamp: $(STAMP) | $(BIN)/python
	@echo "installing the project and its documentation tools into $(VENV) (PyTorch is the large part)"
	@$(PIP) --editable '.[docs]'
	@touch $@ $(VENV)/run.stamp

demo: $(VENV)/run.stamp
	@$(BIN)/python -m examples.demo

web: $(VENV)/web.stamp
	@$(BIN)/vlm demo --open

docs: $(VENV)/docs.stamp
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs out/docs
	@echo "out/docs/index.html"

lint: $(VENV)/dev.stamp
	@echo "ruff"; $(BIN)/ruff check .
	@echo "mypy"; $(BIN)/mypy

# Every other installation brings Gradio's Pillow back, whatever order they come in.
.PHONY: pillow
pillow: $(VENV)/dev.stamp
	@$(BIN)/python -c 'import PIL, sys; sys.exit("pillow==" + PIL.__version__ != "$(PILLOW)")' || $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps $(PILLOW)

test: lint pillow
	@echo "pytest"; $(BIN)/python -m pytest

parity: pillow
	@$(BIN)/python -m tests.parity

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
