PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
export TOKENIZERS_PARALLELISM ?= true

.PHONY: demo test check bench hf-suite

demo: $(VENV)/.ready  ## the main job, offline, in a few minutes
	$(RUN)/tinyhat demo

test: $(VENV)/.ready  ## all tests, no network
	$(RUN)/python -m pytest

check: $(VENV)/.ready  ## format, lint, types
	$(RUN)/ruff format --check . && $(RUN)/ruff check . && $(RUN)/mypy

hf-suite: $(VENV)/.ready  ## transformers' own model tests on LTG-BERT (downloads its source distribution once)
	$(RUN)/python tests/hf_suite/run.py

bench: $(VENV)/.ready  ## side by side with peers (set SOURCE to a EURLEX57K folder or zip)
	$(RUN)/python benchmarks/train.py $(if $(SOURCE),--source $(SOURCE))

# torch is installed first and pinned, so that pip takes a CPU build where one is offered instead of CUDA packages
$(VENV)/.ready: pyproject.toml
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip
	$(RUN)/python -c "import torch" 2>/dev/null || $(RUN)/python -m pip install --quiet "torch==2.13.0"
	$(RUN)/python -m pip install --quiet --editable ".[demo,report,embed,lora,lowbit,ray,sweep,dev]"
	touch $@
