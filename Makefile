# make help
PYTHON ?= python3
BIN := .venv/bin
# Each xdist worker computes on one thread: two workers share two cores without fighting over them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(or $(WORKERS),2)

.PHONY: help install quickstart test test-precision test-slow test-data test-real real-model test-browser test-gpu test-slurm test-compat lint format docs bench studies faults faults-long seeded

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

install: .venv/installed ## make .venv with the versions of constraints.txt

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: install ## train, mix and compare small experts in about three minutes
	$(BIN)/coterie quickstart

test: install ## the default test suite
	$(PYTEST)

test-slow: install ## long tests, but for those of `make faults`
	$(PYTEST) -m slow --ignore=tests/faults --ignore=tests/store

test-data: install ## tests on the real data of ../shared/data (or $COTERIE_DATA)
	$(PYTEST) --dist loadfile -m data

real-model: install ## a real checkpoint of 135 M parameters into the cache folder (93 MB over the network, once)
	$(BIN)/python -m tests.real.model

test-real: install ## tests on that checkpoint (or $$COTERIE_REAL_MODEL)
	$(BIN)/python -m pytest -m real

test-browser: install ## the report in headless Chromium
	$(BIN)/python -m pytest -m browser

test-gpu: install ## tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

test-slurm: install ## tests that need a SLURM cluster
	$(BIN)/python -m pytest -m slurm

# What `auto` means is a property of the CPU: here trainings and equality tests run as on a CPU of the other kind (with AMX,
# without it) than this one, as which `make test` runs them. Any CPU can compute bf16 autocast; without AMX it is only slower.
PRECISION := tests/experts tests/growth/test_grow.py tests/run/test_run.py tests/mixtures/test_coadapt.py \
	$(addprefix tests/mixtures/,adapters/test_ranks.py adapters/test_recipe.py layers/test_run.py) \
	$(addprefix tests/invariants/test_,resume.py trained_moves.py)

test-precision: install ## trainings and equality tests as on a CPU with AMX, or as on one without: what this one is not
	COTERIE_TEST_PRECISION=other $(PYTEST) -m 'slow or not slow' $(PRECISION)

test-compat: install ## other library versions in environments of their own
	$(BIN)/python -m pytest -m compat

# Where long campaigns leave their lines: one that was stopped goes on there.
FAULTS ?= runs/faults

faults: install ## injected faults, at most 15 minutes: campaigns in their middle form, and the long tests of faults and the store
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.campaign middle --jobs 2
	$(PYTEST) -m slow tests/faults tests/store

faults-long: install ## the same campaigns to the counts of docs/results/faults.md: hours
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.campaign long --jobs 2 --to $(FAULTS)
	$(BIN)/python -m tests.faults.campaign report $(FAULTS)

seeded: install ## 60 seeded bugs, each in a copy of the source, against the default suite: hours
	$(BIN)/python -m tests.faults.seeded --to $(FAULTS)/seeded.jsonl
	$(BIN)/python -m tests.faults.seeded report $(FAULTS)/seeded.jsonl

lint: install ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## rewrite files in house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install ## write the reference of recipes from the models, tables of kinds, and CONTRIBUTING's floors
	$(BIN)/coterie recipe > docs/reference/recipe.md
	$(BIN)/python -m tests.docs.derived

STUDIES := $(addprefix benchmarks/,price_of_modularity.py selection_helps.py $(notdir $(wildcard benchmarks/*_study.py)))

bench: install ## every benchmark; each ends with one line of JSON
	@for script in $(filter-out $(STUDIES),$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

studies: install ## what docs/results/ says of training, made again: hours
	@for script in $(STUDIES); do echo "== $$script"; $(BIN)/python $$script || exit 1; done
