# Each goal makes the virtual environment when it is missing, and builds the extension again when a
# source of it is newer. It takes Python 3.11 or newer with its headers, make and a C compiler;
# real servers for demo and tests come with the environment.
#
#   make demo          real clusters, PostgreSQL and the proxy on this machine; Ctrl-C ends it
#   make test          all tests but those of acceptance scale
#   make fast          the tests that start no server, not even one in their own process
#   make bench         nanoseconds per command, then the proxy beside its peers
#   make long          acceptance scale: many minutes; seeds are printed, each test has its own bounds
#   make fuzz          the scanners under a fuzzer; takes clang with its runtime and the extra
#                      fuzz (Debian: apt-get install clang libclang-rt-14-dev;
#                      .venv/bin/pip install -e '.[fuzz]')
#   make clean         remove what was built, the environment too
#
# ARGS reaches the program: make demo ARGS='--port 6380', make test ARGS='-k pipeline'.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTENSION := $(wildcard proxy/wire/*.pyx proxy/wire/*.pxd proxy/wire/*.pxi)
# uv is several times faster where it is there; pip is enough.
UV := $(firstword $(wildcard $(BIN)/uv) $(shell command -v uv 2>/dev/null))

# Byte code is kept, whatever the caller's shell says: tests start many interpreters.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test fast bench long fuzz clean install

demo: install
	@$(BIN)/sidecache demo $(ARGS)

# Three at a time even on two cores: tests with servers mostly wait for them.
test: install
	$(BIN)/python -m pytest -n 3 --dist loadgroup -m "not long" $(ARGS)

# These have no other tests; each worker would read them for nothing.
fast: SLOW := --ignore tests/integration --ignore tests/long --ignore tests/clients
# Two at a time: these hardly wait, and each worker reads all tests first.
fast: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not integration and not long" $(SLOW) $(ARGS)

bench: install
	$(BIN)/python benchmarks/wire.py
	$(BIN)/python benchmarks/scenarios.py
	$(BIN)/python benchmarks/endtoend.py $(ARGS)

long: install
	$(BIN)/python -m pytest -m long -s $(ARGS)

fuzz: install
	$(BIN)/python tests/wire/fuzz.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f proxy/wire/*.so proxy/wire/*.c
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install: $(STAMP)

# Compiled files go first: the build looks at times of the sources alone, not of what they include.
$(STAMP): pyproject.toml $(EXTENSION)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h") and "Python.h is missing: install python3-dev (Debian) or python3-devel (Fedora)")'
	@command -v $${CC:-cc} >/dev/null || { echo "A C compiler is needed: install gcc or clang" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "The module venv is needed: install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV): a minute the first time, seconds with uv" >&2
	@rm -f proxy/wire/*.so proxy/wire/*.c
	$(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check) -e '.[dev]'
	@touch $@
