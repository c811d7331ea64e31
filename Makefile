# Each target makes what it needs: the first one that runs Python builds the virtual environment.
# Written for GNU make 3.81, which is what macOS has.

VENV ?= .venv
ARGS ?=
RUN := $(VENV)/bin/python
STAMP := $(VENV)/installed.stamp
LOG := $(VENV)/install.log

# The first interpreter that is new enough; `make PYTHON=/path/to/python3.12 setup` takes another.
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c '$(IS_NEW_ENOUGH)' 2>/dev/null && { echo $$python; exit; }; done; echo python3)

.DEFAULT_GOAL := help
.PHONY: help setup test reproduce sweep report bench metal lint clean

help: ## Show this list
	@echo "Usage: make <target> [ARGS='...']   (ARGS is handed on to the command behind the target)"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "Everything runs in $(VENV), which the first target that needs it creates (Python 3.11 or newer, about 3 GB;"
	@echo "more with an NVIDIA GPU). VENV=... puts it elsewhere, PYTHON=... chooses the interpreter."

setup: $(STAMP) ## Create the virtual environment and install everything, pinned

# A process a core, four at most; each takes whole files, with one thread.
test: $(STAMP) ## Run the tests (ARGS=tests/kernels: only those)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n logical --maxprocesses 4 --dist loadfile $(ARGS)

reproduce: $(STAMP) ## Measure the papers' tables and figures on this machine, with a verdict on each number
	@$(RUN) -m sige.runs experiment=reproduce $(ARGS)

sweep: $(STAMP) ## Run a sweep (ARGS='model=church,sd14 method=sige,incremental')
	@$(RUN) -m sige.runs -m experiment=sweep $(ARGS)

report: $(STAMP) ## Write tables, figures and results/report.html again from what has been measured
	@$(RUN) -m sige.analysis.report $(ARGS)

bench: $(STAMP) ## Time the kernels and the engine on this machine
	@$(RUN) -m sige.runs experiment=bench $(ARGS)

metal: $(STAMP) ## Test and time the Metal kernels on this Mac; writes metal-check.json to send back
	@$(RUN) -m sige.kernels.mps.check $(ARGS)

lint: $(STAMP) ## Check the code's style
	@$(RUN) -m ruff check . $(ARGS)

clean: ## Remove caches and build leftovers (the environment and the results stay)
	@rm -rf build dist ./*.egg-info .pytest_cache .ruff_cache .hypothesis
	@find sige kernels conf runs analysis datasets tests -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# pip's talk goes to a log; a terminal sees its latest line, anything else sees one line at the beginning and one at the end.
$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c '$(IS_NEW_ENOUGH)' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed, but $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
		exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): a few minutes the first time (log: $(LOG))"
	@$(PYTHON) -m venv $(VENV)
	@rm -f $@.new; : > $(LOG); \
	{ $(RUN) -m pip install --progress-bar off -e '.[sweep,dev]' -c constraints.txt 2>&1 && touch $@.new; } | \
	while IFS= read -r line; do \
		printf '%s\n' "$$line" >> $(LOG); \
		if [ -t 1 ]; then printf '\r\033[K%.100s' "$$line"; fi; \
	done; \
	if [ -t 1 ]; then printf '\r\033[K'; fi; \
	if [ ! -e $@.new ]; then tail -n 20 $(LOG) >&2; echo "Installing failed; the whole log is $(LOG)." >&2; exit 1; fi
	@mv $@.new $@
	@echo "$(VENV) is ready."
