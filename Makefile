# Only Python (3.11 or newer) and make are needed: every target sets itself up in .venv first.
PYTHON ?= python3
VENV ?= .venv
# More for pip, e.g. PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" for PyTorch without CUDA (200 MB instead of 3 GB).
PIP_ARGS ?=
BIN := $(VENV)/bin
# A process for each core, at most four (2 GB each); a file's tests stay together, because they share what they train.
PARALLEL ?= -n auto --maxprocesses 4 --dist loadfile
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo check test test-poisoned bench bench-data bench-gpu bench-report bench-kills bench-scaling docs dist house clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## install into .venv (done once; again when pyproject.toml, setup.py or constraints.txt change)

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed (make PYTHON=python3.12 ...), this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints.txt -e ".[dev,docs]"
	@touch $@

demo: setup  ## train DIO on synthetic pairs, test it on unseen ones, beside the same solver on raw intensities
	$(BIN)/dio-lightning fit --config experiments/dio/demo.yaml --overwrite
	$(BIN)/dio-lightning test --config experiments/dio/demo.yaml --ckpt_path last --overwrite
	$(BIN)/dio-lightning test --config experiments/classical/demo_intensity.yaml --overwrite
	@echo
	@echo "Tables (metrics.csv, metrics_per_label.csv, summary.json) and pictures (panels/*.png):"
	@echo "  DIO              runs/demo/dio/"
	@echo "  raw intensities  runs/demo/intensity/"

check: setup  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: setup  ## the test suite (tests on real anatomy run when DIO_DATA names its folder)
	$(BIN)/python -m pytest $(PARALLEL)

test-poisoned: setup  ## the suite with NaN in all memory that nobody has written: finds what reads it
	MALLOC_PERTURB_=165 DIO_POISON=1 $(BIN)/python -m pytest $(PARALLEL)

bench: setup  ## speed and memory of the inner loop: a table and build/bench.json
	$(BIN)/python benchmarks/bench.py

bench-data: setup  ## speed and memory of the data that DIO_DATA names, and of augmentation: tables and build/bench_*.json
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/augmenting.py

bench-gpu: setup  ## what the library does on a GPU: build/gpu.json; goes on where it was cut off
	$(BIN)/python benchmarks/gpu.py

bench-report: setup  ## seconds and size of the page of a test with 30 pairs of 160×192×224
	$(BIN)/python benchmarks/report.py

bench-kills: setup  ## kills trainings, predictions and caches at random moments, and says what they leave
	$(BIN)/python benchmarks/kills.py

bench-scaling: setup  ## the same training and test on one process and on two: a table and build/scaling.json, .csv, .md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scaling.py

docs: setup  ## the site, strictly and without the network: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "wrote build/site/index.html; its search needs a server: python -m http.server -d build/site"

dist: setup  ## source archive and wheel into dist/; the wheel is installed into a fresh environment and run
	$(BIN)/python tests/wheels.py

house:  ## lines and files of every package, the longest file, circles of imports
	@$(PYTHON) tests/house.py

clean:  ## remove caches and build folders (keeps .venv and runs)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
