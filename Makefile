# What people do all day. `make test` is what CI runs.
PYTHON ?= python

.PHONY: help lint types imports unit unfinished test bench golden wheel clean

help:           ## these targets
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/'

lint:           ## ruff
	$(PYTHON) -m ruff check .

types:          ## mypy, strict
	$(PYTHON) -m mypy

imports:        ## losskit_cli -> sweeps -> components, and nothing the other way
	$(PYTHON) -c "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"

# end-to-end tests that are still being written: to move into `unit` as each of them holds
UNFINISHED = tests/test_bad_input.py tests/test_habits.py tests/test_experiments.py tests/test_runs.py tests/test_user_project.py \
	tests/test_devices.py tests/faults/test_ddp.py tests/faults/test_stores_and_disks.py tests/cli/test_importing.py

unit:           ## the tests, on two processes
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist worksteal $(UNFINISHED:%=--ignore=%)

unfinished:     ## the tests that are not in `unit` yet
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist worksteal $(UNFINISHED)

test: lint types imports unit  ## everything that CI checks

bench:          ## losskit beside the same experiment written the usual way
	$(PYTHON) tests/benchmarks/train.py

golden:         ## write the golden loss curves anew (only when numbers are meant to change)
	$(PYTHON) tests/test_golden.py --write

wheel:          ## a wheel in dist/
	$(PYTHON) -m build --wheel

clean:          ## what builds and runs leave behind
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
