# make demo: set-up and the main job.  make test: set-up and all tests.
# Nothing is needed but Python, gcc, make and the package registry.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
SOURCES = pyproject.toml setup.py $(wildcard csrc/*.c csrc/*.h sagequeue/*.pyx sagequeue/*.pxd sagequeue/*.pxi)
VERSIONS = 3.10 3.11 3.12 3.13

.PHONY: demo test install tools lint types ctest sanitize model fuzz pytest matrix bench soak wheel clean

demo: install
	$(BIN)/sagert run examples/wordcount.yaml

test: install tools lint types ctest sanitize model fuzz pytest

install: $(STAMP)

$(STAMP): $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[lint,test]'
	touch $@

# Debian's packages that check the core: the model checker, and a compiler with libFuzzer.
tools:
	@command -v spin >/dev/null && command -v clang >/dev/null || { \
	    echo "installing spin and clang"; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq spin clang; } \
	        >/dev/null || { echo "install spin and clang, then run this again" >&2; exit 1; }; }

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.[ch] csrc/tests/*.[ch] csrc/fuzz/*.[ch] bench/core/*.c

types: install
	$(BIN)/mypy

ctest:
	$(MAKE) -C csrc test

sanitize:
	$(MAKE) -C csrc test SAN=thread
	$(MAKE) -C csrc test SAN=address,undefined

model: tools
	$(MAKE) -C csrc/model

fuzz: tools
	$(MAKE) -C csrc/fuzz

pytest: install
	$(BIN)/python -m pytest tests

# The tests on every supported Python that is installed as pythonX.Y.
matrix:
	for version in $(VERSIONS); do \
	    PYENV_VERSION=$$(pyenv latest $$version 2>/dev/null) \
	    $(MAKE) pytest PYTHON=python$$version VENV=.venv-$$version || exit 1; \
	done

bench: install
	$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python -m bench
	$(BIN)/python -m bench.runtime

# Processes at random killed, ten thousand times, and stopped, a thousand times.
soak: install
	$(BIN)/python -m bench.soak --kills 10000 --stops 1000

wheel:
	$(PYTHON) -m venv $(VENV)-build
	$(VENV)-build/bin/pip install --quiet build
	$(VENV)-build/bin/python -m build

clean:
	$(MAKE) -C csrc clean
	rm -rf build dist *.egg-info $(VENV) $(VENV)-build .venv-3.* sagequeue/*.so sagequeue/_*.c
