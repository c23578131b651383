# This file needs GNU make. The checkout may lie in any folder. Everything is installed in .venv, and every tool is
# run by .venv/bin/python.
#   PYTHON       the Python that makes .venv, 3.11 or newer
#   TORCH_INDEX  an additional package index for torch, such as PyTorch's CPU-only one
#   LAB_ARGS     options for JupyterLab, for `make lab`

PYTHON ?= $(shell if python3.11 -c '' 2>/dev/null; then echo python3.11; else echo python3; fi)
TORCH_INDEX ?=
LAB_ARGS ?=
ifneq ($(strip $(TORCH_INDEX)),)
export PIP_EXTRA_INDEX_URL := $(strip $(TORCH_INDEX) $(PIP_EXTRA_INDEX_URL))
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1

VENV_PYTHON := .venv/bin/python
PIP_INSTALL := $(VENV_PYTHON) -m pip install -qq
NBVAL := PYTHONPATH=.ci $(VENV_PYTHON) -m pytest -p nbval_strict --nbval --nbval-current-env --nbval-cell-timeout=120

.DEFAULT_GOAL := help
.PHONY: help demo test soak evaluate figures check notebooks screenshots lab book slides lock wheels clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@echo "The first call sets up .venv (about 2 minutes, 2 GB). On Linux without a GPU, it also downloads gigabytes"
	@echo "of CUDA, unless you add  TORCH_INDEX=https://download.pytorch.org/whl/cpu"

demo: .venv/installed  ## generate "a cat in a red hat" into test.mp4
	@$(VENV_PYTHON) launch/generate.py --prompt "a cat in a red hat" --path ./test.mp4

test: .venv/installed  ## lint, unit tests, and every notebook compared with its stored outputs
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m pytest tests/
	$(NBVAL) notebooks/ --ignore notebooks/talk.ru.ipynb
	LIVE=0 $(NBVAL) notebooks/talk.ru.ipynb

soak: .venv/installed  ## the long tests: default videos on 2, 4 and 8 ranks, 20 killed ranks (about 7 minutes)
	$(VENV_PYTHON) -m pytest -m soak tests/

evaluate: .venv/installed  ## measure how often mini's videos match prompts for scenes that it was never trained on (half an hour)
	$(VENV_PYTHON) launch/evaluate_mini.py --out assets/benchmarks/evaluate_mini.json

figures: .venv/installed  ## draw the benchmark's figures anew, from assets/benchmarks alone
	@$(VENV_PYTHON) launch/plot.py

check: .venv/installed  ## can this machine run the workshop? one line per requirement
	@$(VENV_PYTHON) launch/check_machine.py

notebooks: .venv/installed  ## run every notebook and store its outputs
	$(VENV_PYTHON) .ci/notebooks.py notebooks/*.ipynb

screenshots: .venv/installed  ## run every notebook in a browser, move its widgets, save pictures in runs/screenshots
	@command -v npm >/dev/null || { echo "npm was not found: install Node.js 20.11 or newer"; exit 1; }
	@cd .ci/browser && npm install --no-package-lock --no-audit --no-fund --loglevel=error
	node .ci/browser/look.mjs

lab: .venv/installed  ## open the first lesson in JupyterLab; LAB_ARGS="--port 9000 --no-browser" passes options to it
	@if test "$$(id -u)" = 0 && ! echo " $(LAB_ARGS) " | grep -q -e ' --allow-root '; then \
		echo "JupyterLab refuses to run as root: use another account, or make lab LAB_ARGS=--allow-root"; exit 1; fi
	@$(VENV_PYTHON) -m jupyterlab notebooks/00_start_here.ipynb $(LAB_ARGS)

book: .venv/installed  ## build a site of all lessons and pages that needs no network, in build/book
	@$(PIP_INSTALL) --constraint requirements.lock --no-build-isolation --editable '.[book]'
	@rm -rf build/book
	$(VENV_PYTHON) -m sphinx --conf-dir book --fail-on-warning --keep-going --fresh-env -q -d build/doctrees . build/book
	@$(VENV_PYTHON) .ci/links.py build/book
	@echo "Open build/book/index.html in a browser"

slides: .venv/installed  ## build the slides of the talk in both languages, which need no network, in build/slides
	@$(PIP_INSTALL) --constraint requirements.lock --no-build-isolation --editable '.[book]'
	@rm -rf build/slides
	@$(VENV_PYTHON) .ci/slides.py build/slides notebooks/talk*.ipynb

lock: .venv/bin/python  ## resolve pyproject.toml anew into requirements.lock
	@$(PIP_INSTALL) packaging
	$(VENV_PYTHON) .ci/lock.py torch==2.13.0

wheels: .venv/bin/python  ## download all packages into wheels/, to set up other machines without a network
	@echo "Downloading the packages of requirements.lock into wheels"
	@$(VENV_PYTHON) -m pip download -qq --only-binary :all: --dest wheels -r requirements.lock
	@echo "On a machine with the same system, processor and Python: PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels make demo"

clean:  ## remove .venv, caches and build folders
	rm -rf .venv .pytest_cache .ruff_cache build kandinsky_mini.egg-info
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The set-up runs once. The file `unfinished` is there from the making of .venv until the end of the first installation,
# so an interrupted one starts afresh. A finished one is updated when requirements.lock or pyproject.toml changes, and
# kept if that fails: then the stamp `installed` stays old, and the next call tries again.
.venv/installed: requirements.lock pyproject.toml
	@if test -e .venv/unfinished; then echo "Removing an unfinished .venv"; rm -rf .venv; fi
	@$(MAKE) --no-print-directory .venv/bin/python
	@echo "Installing $$(grep -c == requirements.lock) packages from requirements.lock into .venv: about 2 minutes"
	@$(PIP_INSTALL) -r requirements.lock
	@echo "Installing kandinsky_mini itself, editable"
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@rm -f .venv/unfinished && touch $@
	@echo "Set-up done"

.venv/bin/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not." \
		     "Name one that is: make PYTHON=python3.12"; exit 1; }
	@echo "Making .venv with $$("$(PYTHON)" --version)"
	@mkdir -p .venv && touch .venv/unfinished
	@"$(PYTHON)" -m venv .venv
