# make demo: set-up and the main job.  make test: set-up and all tests.
# Nothing is needed but Python, gcc, make and the package registry.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
SOURCES = pyproject.toml setup.py $(wildcard csrc/*.c csrc/*.h sagequeue/*.pyx sagequeue/*.pxd sagequeue/*.pxi)
VERSIONS = 3.10 3.11 3.12 3.13

.PHONY: demo test install tools lint types ctest sanitize model fuzz pytest matrix aarch64 asan bench soak \
    wheel clean

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
	$(BIN)/lint-imports
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

# The core and the queue on aarch64, emulated; on Debian, as root.
aarch64: install
	VENV=$(VENV) .ci/aarch64

# The queue's tests with its memory watched, in two builds: under AddressSanitizer and
# UndefinedBehaviorSanitizer, then under an interpreter with assertions and reference counts. Either
# has sources and packages of its own in build/. A report of a sanitizer, in whatever process, ends
# that process and is left in a file. Leaks are not looked for this way: the interpreter itself frees
# little when it ends; tests/sage/test_growth.py does it.
QUEUE_SOURCES = README.md pyproject.toml setup.py bench csrc sagequeue sageruntime tests
QUEUE_PACKAGES = cython setuptools numpy ml_dtypes cloudpickle msgspec psutil pytest pytest-timeout \
    hypothesis
QUEUE_TESTS = -m pytest -p tests.instrumented -p no:cacheprovider tests/sage tests/queue
SANITIZERS = -fsanitize=address,undefined -fno-omit-frame-pointer
REPORTS = $(CURDIR)/build/sanitized/reports

asan: build/sanitized/venv build/debug/venv
	$(call build_in,sanitized,CFLAGS="-g -UNDEBUG $(SANITIZERS)" LDFLAGS="$(SANITIZERS)")
	rm -rf $(REPORTS) && mkdir $(REPORTS)
	cd build/sanitized/tree && \
	    LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS="abort_on_error=1:allocator_may_return_null=1:detect_leaks=0:handle_segv=2:handle_sigbus=2:handle_abort=1:log_path=$(REPORTS)/address" \
	    UBSAN_OPTIONS="abort_on_error=1:halt_on_error=1:print_stacktrace=1:log_path=$(REPORTS)/undefined" \
	    PYTHONMALLOC=malloc ../venv/bin/python $(QUEUE_TESTS) -p no:faulthandler; \
	    status=$$?; cat $(REPORTS)/* 2>/dev/null && exit 1; exit $$status
	$(call build_in,debug,CFLAGS="-g -UNDEBUG")
	cd build/debug/tree && PYTHONDEVMODE=1 ../venv/bin/python $(QUEUE_TESTS)

define build_in
rm -rf build/$(1)/tree && mkdir -p build/$(1)/tree
tar c --exclude='*.so' --exclude='sagequeue/_*.c' --exclude=csrc/build --exclude=__pycache__ \
    $(QUEUE_SOURCES) | tar x -C build/$(1)/tree
cd build/$(1)/tree && $(2) ../venv/bin/python setup.py --quiet build_ext --inplace --parallel 2
endef

build/sanitized/venv: Makefile
	$(PYTHON) -m venv --clear $@
	$@/bin/python -m pip install --quiet $(QUEUE_PACKAGES)

# Debian's interpreter with assertions; CPython's own tests, which some of ours are, stand apart.
build/debug/venv: Makefile
	@python3-dbg -c 'import ensurepip, test.test_queue' 2>/dev/null || { \
	    echo "installing python3-dbg"; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
	        python3-dbg python3-venv python3-dev '^libpython3[.][0-9]+-testsuite$$'; } \
	        >/dev/null || { echo "install python3-dbg, then run this again" >&2; exit 1; }; }
	python3-dbg -m venv --clear $@
	$@/bin/python -W ignore -m pip install --quiet $(QUEUE_PACKAGES)

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
