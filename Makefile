# Set-up, training, tests and everything CI runs. `make` alone lists the targets.

PYTHON ?= python3
ARGS ?=
# seed of the order in which shuffle runs the tests; 0 draws one
SHUFFLE ?= 0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# torch's version range, from the one place it is written
TORCH := $(shell sed -n 's/^ *"\(torch>=[^"]*\)".*/\1/p' pyproject.toml)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup train test shuffle slow readme chaos check lint format types links docs site golden notebooks outputs screen results bench wheel wheel-check clean

help: ## List the targets
	@echo "make TARGET [PYTHON=python3.12] [ARGS='…']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Create .venv and install the package there, editable, with the development tools

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "rimlit needs Python 3.11 or newer; name one with PYTHON=…, for example make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	# torch first and alone: the other packages then use whichever build is available (CPU or CUDA)
	$(BIN)/python -m pip install "$(TORCH)"
	$(BIN)/python -m pip install -e '.[dev]'
	$(BIN)/python -m rimlit.kernels.cpu
	@touch $@

train: setup ## Train a RIM on the copying task; ARGS are passed to rimlit fit
	$(BIN)/rimlit fit --config configs/copying/rim.yaml $(ARGS)

test: setup ## Run the fast tests; ARGS are passed to pytest
	$(BIN)/python -m pytest -n auto $(ARGS)

shuffle: setup ## Run the fast tests in a random order, whose seed is printed: SHUFFLE=SEED repeats it
	$(BIN)/python -m pytest -n auto --shuffle $(SHUFFLE) $(ARGS)

slow: setup ## Run the slow tests: every YAML, the README's commands, training to a score
	$(BIN)/python -m pytest -n auto -m 'slow and not gpu and not network' $(ARGS)

readme: setup ## Run the README's fenced commands at a small size
	$(BIN)/python -m pytest -m 'not gpu and not network' tests/test_readme.py $(ARGS)

chaos: setup ## Kill training runs 100 times (kill -9), resume them and compare bit for bit; takes minutes
	$(BIN)/python -m tests.chaos --kills 100 --starts 20 --json benchmarks/results/chaos.json $(ARGS)

check: lint types links site shuffle slow wheel-check notebooks ## Run everything that CI runs

lint: setup ## Check format, style, spelling and wording
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/python docs/check_words.py

format: setup ## Format the code and fix what can be fixed automatically
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: setup ## Check types
	$(BIN)/mypy

links: setup ## Check the relative links of the documentation
	$(BIN)/python docs/check_links.py

docs: setup ## Rewrite the tables of README and docs from benchmarks/results, then check the links
	$(BIN)/python -m benchmarks.tables
	$(BIN)/python docs/check_links.py

site: setup ## Build the documentation site into build/site; warnings and broken links are errors; ARGS are passed to sphinx
	$(BIN)/python -m sphinx -b html -W --keep-going -n -q -j auto -c docs -d build/doctrees $(ARGS) . build/site
	@echo "build/site/index.html"

golden: setup ## Rewrite tests/golden; only when curves, public names or options are meant to change
	$(BIN)/python tests/golden/refresh.py
	$(BIN)/python -m tests.golden.names

EXECUTE = set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	bin=$$(pwd)/$(BIN); cp notebooks/*.ipynb "$$folder"; cd "$$folder"; \
	ls *.ipynb | OMP_NUM_THREADS=1 xargs -n 1 -P 2 "$$bin/jupyter-execute" --inplace --timeout=600

notebooks: setup ## Execute every notebook in a temporary folder
	$(EXECUTE)

outputs: setup ## Execute every notebook and store its outputs in notebooks/, for the site
	$(EXECUTE); "$$bin/python" "$(CURDIR)/docs/store_outputs.py" "$$folder"

screen: setup ## Train what the screen of rules lacks, two runs at a time at low priority, and print its table
	$(BIN)/python -m benchmarks.screen $(ARGS)

results: setup ## Train the queue of long runs, benchmarks/queue.yaml, resumable, at low priority; ARGS='--list' prints it
	$(BIN)/python -m benchmarks.results_queue $(ARGS)

bench: setup ## Measure layers and whole training steps on an idle machine; run 'make docs' afterwards
	$(BIN)/python benchmarks/layer.py --json benchmarks/results/layer.json
	$(BIN)/python benchmarks/training.py --json benchmarks/results/training.json
	$(BIN)/python benchmarks/guard.py --json benchmarks/results/guard.json
	$(BIN)/python benchmarks/scaling.py --json benchmarks/results/scaling.json

wheel: setup ## Build the wheel and the source archive into dist/
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

# unpacked outside the checkout and first on the path: what is not in the wheel is not found
wheel-check: wheel ## Run rimlit from the built wheel, outside the checkout
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; bin=$$(pwd)/$(BIN); \
	$(BIN)/python -m pip install --no-deps --target "$$folder/wheel" dist/*.whl; \
	cd "$$folder"; export PYTHONPATH="$$folder/wheel"; \
	"$$bin/python" -c 'import rimlit, sys; assert rimlit.__file__.startswith(sys.argv[1]), rimlit.__file__' "$$folder"; \
	"$$bin/rimlit" configs; \
	"$$bin/python" -c 'import rimlit; names = list(rimlit.pretrained()); print(names); assert len(names) == 3; [rimlit.from_pretrained(name) for name in names]'; \
	"$$bin/rimlit" fit --config copying/rim --trainer.fast_dev_run true; \
	"$$bin/rimlit" new selection Fading; "$$bin/python" -m pytest -q -p no:cacheprovider test_fading.py

clean: ## Remove build results and caches; keep .venv, runs and mlflow.db
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
