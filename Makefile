# make demo: set-up and the main job.  make test: set-up and all tests.
# Nothing is needed but Python, gcc, make and the package registry.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
SOURCES = pyproject.toml setup.py $(wildcard csrc/*.c csrc/*.h sagequeue/*.pyx sagequeue/*.pxd sagequeue/*.pxi)
VERSIONS = 3.10 3.11 3.12 3.13

.PHONY: demo test install lint types ctest sanitize pytest matrix bench wheel clean

demo: install
	$(BIN)/sagert run examples/wordcount.yaml

test: install lint types ctest sanitize pytest

install: $(STAMP)

$(STAMP): $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[lint,test]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.c csrc/*.h csrc/tests/*.c csrc/tests/*.h

types: install
	$(BIN)/mypy

ctest:
	$(MAKE) -C csrc test

sanitize:
	$(MAKE) -C csrc test SAN=thread
	$(MAKE) -C csrc test SAN=address,undefined

pytest: install
	$(BIN)/python -m pytest tests

# The tests on every supported Python that is installed as pythonX.Y.
matrix:
	for version in $(VERSIONS); do \
	    $(MAKE) pytest PYTHON=python$$version VENV=.venv-$$version || exit 1; \
	done

bench: install
	$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python -m bench

wheel:
	$(PYTHON) -m venv $(VENV)-build
	$(VENV)-build/bin/pip install --quiet build
	$(VENV)-build/bin/python -m build

clean:
	$(MAKE) -C csrc clean
	rm -rf build dist *.egg-info $(VENV) $(VENV)-build .venv-3.* sagequeue/*.so sagequeue/_*.c
