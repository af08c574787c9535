# `make` alone lists the targets. Each sets up .venv by itself, once per change of
# pyproject.toml or constraints.txt, with the exact versions that constraints.txt pins.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-
TORCH := 2.13.0

# More than two workers gain nothing on a suite this quick; each one computes on a single thread.
PYTEST_ARGS ?= -n auto --maxprocesses 2 --dist loadfile
SPHINXOPTS ?=
BENCHMARK_CONFIG ?= quick.yml

comma := ,

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow coverage lint format typecheck docs benchmark constraints clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED)plot+sklearn ## select SVM hyperparameters on real data; figure and table in results/
	$(BIN)/python examples/svm_hyperparameters.py --dataset breast_cancer

test: $(INSTALLED)test ## run the quick test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: $(INSTALLED)test ## run the tests marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m slow

coverage: $(INSTALLED)test ## run the quick test suite and report what it leaves out
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) --cov

lint: $(INSTALLED)dev ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)dev ## put the code into the project's format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

typecheck: $(INSTALLED)dev ## check the library's types
	$(BIN)/mypy

docs: $(INSTALLED)docs ## build the site into docs/_build/html; warnings are errors
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going $(SPHINXOPTS) docs docs/_build/html

benchmark: $(INSTALLED)benchmark ## run each benchmark's quick profile and write its HTML report
	@set -e; for objective in $(wildcard benchmarks/*/objective.py); do \
		folder=$$(dirname "$$objective"); \
		echo "== $$folder"; \
		OMP_NUM_THREADS=1 BENCHOPT_RAISE_ON_ERROR=true $(BIN)/benchopt run "$$folder" \
			--config "$$folder/$(BENCHMARK_CONFIG)" --no-display; \
	done
	$(BIN)/python benchmarks/report.py

constraints: $(BIN)/python ## resolve constraints.txt anew (an exact pin of every dependency)
	$(BIN)/python -m pip install --quiet uv
	{ sed '/^$$/q' constraints.txt; \
	  echo 'torch==$(TORCH)' | $(BIN)/uv pip compile --quiet --universal --python-version 3.10 \
	    --only-binary :all: --constraint - --extra dev --extra docs --extra benchmark \
	    --no-annotate --no-header pyproject.toml | grep -vE '^(cuda|nvidia|triton)'; \
	} > constraints.new
	mv constraints.new constraints.txt

clean: ## remove what the other targets built, except .venv and results/
	rm -rf build dist docs/_build docs/auto_examples docs/gen_modules docs/sg_execution_times.rst
	rm -rf .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf benchmarks/*/outputs benchmarks/*/__cache__
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## the same, and remove .venv
	rm -rf $(VENV)

# .installed-a+b records that the extras a and b are installed.
$(INSTALLED)%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing bilevel[$(subst +,$(comma),$*)] into $(VENV) (minutes, the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
		-e '.[$(subst +,$(comma),$*)]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
