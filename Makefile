# Two commands: `make demo` opens the page, `make test` runs the tests. The first run builds a virtual environment;
# later runs find it up to date and need no network. Options go through ARGS: make demo ARGS="--ranks 4 --port 7861".

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help demo test lint format bench quality plots soak screenshots clean

help:
	@echo "make demo         start the page on all GPUs, or on 2 CPU processes, and print its address"
	@echo "make test         run the tests"
	@echo "make lint         ruff check, ruff format --check, mypy"
	@echo "make format       let ruff rewrite what it can"
	@echo "make bench        measure the README's table of times, by the embedded model on CPU processes"
	@echo "make quality      measure the README's table of quality: the held-out captions by every method"
	@echo "make plots        measure and draw the README's plots"
	@echo "make soak         200 requests and random faults against a real group, and the ledger"
	@echo "make screenshots  make the README's pictures anew: the page, driven by a browser"
	@echo "make clean        remove the virtual environment and the caches"

demo: $(VENV)/.runtime
	$(BIN)/python app.py $(ARGS)

test: $(VENV)/.development
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.development
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# As many rounds as eight minutes have, at most ten. Options among ARGS win: make bench ARGS="--minutes 60 --test-times 20".
bench: $(VENV)/.runtime
	$(BIN)/python -m launcher benchmark --model assets/demo_model --device cpu --height 512 --width 512 --steps 20 \
	    --parallelism patch,naive_patch --mode corrected_async_gn,no_sync,extrapolated --split-batch on,off --ranks 1,2,4 \
	    --threads-per-rank 1 --warmup-times 1 --test-times 10 --minutes 8 $(ARGS)

quality: $(VENV)/.development
	$(BIN)/python -m tests.support.quality

plots: $(VENV)/.development
	$(BIN)/python -m tests.support.plots

# Minutes of random faults against a real group, and the ledger: make soak ARGS="--requests 50 --seed 2"
soak: $(VENV)/.development
	$(BIN)/python -m tests.support.soak $(ARGS)

screenshots: $(VENV)/.development
	$(BIN)/python -m tests.support.screenshots

clean:
	rm -rf $(VENV) .pytest_cache .hypothesis .ruff_cache .mypy_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }  # half an environment would be taken for a whole one

# Stamps: touched once everything in the file is installed, so that the next run starts at once and offline.
$(VENV)/.runtime: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.development: requirements-dev.txt requirements-mcp.txt requirements-ray.txt requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ $(VENV)/.runtime
