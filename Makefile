# Words from Noise: everything from a fresh clone with Python, make and git.
# Settings: PYTHON=python3.13  VENV=.venv  TORCH_INDEX=  PYTEST_ARGS="-x"

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
RECIPES ?=
JUPYTER_BOOK_ARGS ?=

# Where pip may find a torch without CUDA; empty on a machine with an NVIDIA
# card. If the address does not answer, pip goes on with its usual index.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi 2>/dev/null),,https://download.pytorch.org/whl/cpu)

# The book asks for nothing over the network while it runs.
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help book page test refresh checkpoints lint clean distclean
.PRECIOUS: $(VENV)/.%
.NOTPARALLEL:

help:
	@echo "make book         build the book: executed HTML in _build/html"
	@echo "make page         the same from the committed outputs, not run"
	@echo "make test         run all tests, notebooks included"
	@echo "make refresh      run the chapters and store their outputs"
	@echo "make checkpoints  make everything in data/ again, or go on (hours)"
	@echo "make lint         check style and formatting, notebooks included"
	@echo "                  (scripts and styles too, where npm is)"
	@echo "make clean        remove what was built (distclean: .venv too)"

# One environment, .venv; a stamp for each set of packages put into it.
$(VENV)/.%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "This book needs Python 3.11 or newer, but '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..."; \
	  exit 1; }
	@test -x $(BIN)/python || { echo "creating $(VENV)"; \
	  $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; }
	@echo "installing the packages for '$*' (minutes, the first time)"
	@$(BIN)/python -c 'import torch' 2>/dev/null || \
	  $(BIN)/python -m pip install -q --disable-pip-version-check \
	    --no-deps --retries 0 -c constraints.txt \
	    $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@$(BIN)/python -m pip install -q --disable-pip-version-check \
	  -c constraints.txt -e '.[$*]'
	@touch $@

# A page with a warning would not warn again once Sphinx has stored it:
# after a failure the stored pages go, the executed notebooks stay.
book: $(VENV)/.book
	@$(BIN)/jupyter-book build . -W -n --keep-going $(JUPYTER_BOOK_ARGS) || \
	  { rm -rf _build/.doctrees; \
	    echo "The book was not built: see the warnings above" \
	      "and _build/html/reports/."; exit 1; }
	@echo "The book is at file://$(CURDIR)/_build/html/index.html"

# What is published: the committed outputs as they are, nothing executed.
page: $(VENV)/.book
	@mkdir -p _build && rm -rf _build/.doctrees
	@sed 's/^  execute_notebooks: .*/  execute_notebooks: "off"/' \
	  _config.yml > _build/page.yml
	@PYTHONPATH=tools $(BIN)/jupyter-book build . -W -n --keep-going \
	  --config _build/page.yml $(JUPYTER_BOOK_ARGS)
	@echo "The page is at file://$(CURDIR)/_build/html/index.html"

test: $(VENV)/.test
	$(BIN)/python -m pytest --nbval $(PYTEST_ARGS)

refresh: $(VENV)/.test
	$(BIN)/python tools/refresh.py

# RECIPES="--list" shows what there is; RECIPES="ladder --jobs 8" makes one.
checkpoints: $(VENV)/.test
	$(BIN)/python -m recipes $(RECIPES)

# Biome checks JavaScript and CSS, in the version of package-lock.json.
NPM := $(shell command -v npm 2>/dev/null)

lint: $(VENV)/.test $(if $(NPM),node_modules/.package-lock.json)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(NPM),node_modules/.bin/biome ci --error-on-warnings dblm_lib _static,@echo \
	  "NOT CHECKED: scripts and styles (dblm_lib/widgets, _static)." \
	  "Their linter needs npm, which comes with Node.js.")

node_modules/.package-lock.json: package-lock.json package.json
	$(NPM) ci --no-audit --no-fund
	@touch $@

clean:
	rm -rf _build build dist *.egg-info
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune \
	  -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) node_modules
