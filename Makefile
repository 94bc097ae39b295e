# What people do all day. `make test` is what CI runs.
PYTHON ?= python

.PHONY: help lint types imports unit test bench golden wheel clean

help:           ## these targets
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/'

lint:           ## ruff
	$(PYTHON) -m ruff check .

types:          ## mypy, strict
	$(PYTHON) -m mypy

imports:        ## losskit_cli -> sweeps -> components, and nothing the other way
	$(PYTHON) -c "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"

unit:           ## the tests, on two processes
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist worksteal

test: lint types imports unit  ## everything that CI checks

bench:          ## losskit beside the same experiment written the usual way
	$(PYTHON) tests/benchmarks/train.py
	$(PYTHON) tests/benchmarks/sweep_runs.py
	$(PYTHON) tests/benchmarks/probes.py
	$(PYTHON) tests/benchmarks/optimizers.py
	$(PYTHON) tests/benchmarks/losses.py
	$(PYTHON) tests/benchmarks/spherical.py

golden:         ## write the golden loss curves anew (only when numbers are meant to change)
	$(PYTHON) tests/test_golden.py --write

wheel:          ## a wheel in dist/
	$(PYTHON) -m build --wheel

clean:          ## what builds and runs leave behind
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
