# make study   compare normalizations on real data and write a report (STUDY=norms)
# make studies   all studies, which takes hours on two cores (SMOKE=1: that they run, in minutes)
# make verdicts   write what the reports found into docs/studies, docs/studies.md and README.md
#              (COMMITTED=1: of docs/studies alone)
# make data    install the data sets that Debian packages (Fashion-MNIST, WordNet, mlbench), where there is apt
# make test    the tests (make test-fast: those that catch most a second; make test-rest: the others;
#              make test-slow: those that take long, of several processes)
# make test-isa   the numerical tests as on a processor of fewer instructions (ISA=AVX2), with another
#              seed of the random draws where it is given (SEED=0; FIRST=1: one case of every test)
# make test-versions   the library's tests on Python 3.11, 3.12 and 3.13, where they are installed, with
#              the lowest and the newest jax and flax (VERSIONS=3.12-lowest: one of them, TESTS=files,
#              FIRST=1: one case of every test)
# make test-newest   of them 3.13-newest: Python 3.13 with the newest releases that pip finds
# make test-compiled   that the programs that compilers make for an H100 and a TPU v5e move and run what
#              benchmarks/compiled/counts.json says; on Python 3.13, with compilers of 1.9 GB and no device
# make bench   jaxnorm beside its peers; updates the tables and the figure of docs/
#              (PART=speed, sweep, models, memory, precision, collectives or scaling, FULL=1 for more sizes
#              and rounds; PART=compiled: counts of those programs, beside Flax's, FULL=1 for all of them,
#              CASES='gpu layer' for those with these words in their names)
#              python -m benchmarks device: what a GPU at hand does, in eight minutes; needs jax, flax, numpy
# make docs    the site, into docs/_build/html, without network
# make lint    style and types
# make dist    the source distribution and this platform's wheel into dist/, checked: contents, and
#              installed into empty environments, with the kernels on, off and not built
# make sanitize  the kernels under AddressSanitizer and UndefinedBehaviorSanitizer
# Each makes the virtual environment that it needs, once.

PYTHON ?= python3
STUDY ?= norms
ISA ?= AVX2
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: study studies verdicts data test test-fast test-rest test-slow test-isa test-newest test-versions \
	install-compiled test-compiled newest-python bench docs lint dist sanitize clean

# Compiled programs are kept, so each wave of runs and each process of a timed seed loads them.
study studies: export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.cache/programs
study studies: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0

study: $(VENV)/with-experiments data
	$(BIN)/python -m experiments.studies --only $(STUDY)

studies: $(VENV)/with-experiments data
	$(BIN)/python -m experiments.studies $(if $(SMOKE),--smoke)

verdicts: $(VENV)/with-experiments
	$(BIN)/python -m experiments.verdicts $(if $(COMMITTED),--from-committed)

DATA := /usr/share/datasets/fashion-mnist /usr/share/wordnet /usr/lib/R/site-library/mlbench
DATA_PACKAGES := dataset-fashion-mnist wordnet-base r-cran-mlbench
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo --non-interactive)
INSTALL := $(AS_ROOT) apt-get install --quiet=2 --no-install-recommends

data:
	@ls -d $(DATA) >/dev/null 2>&1 || { command -v apt-get >/dev/null && echo "Installing data sets ..." && \
	{ $(INSTALL) $(DATA_PACKAGES) >/dev/null 2>&1 || { $(AS_ROOT) apt-get update --quiet=2 && $(INSTALL) \
	$(DATA_PACKAGES); } >/dev/null 2>&1; }; } || echo "Not all data sets are installed, and what needs one says" \
	"so: install Debian's packages $(DATA_PACKAGES)" >&2

PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

test: $(VENV)/with-experiments,test
	$(PYTEST) -m 'not slow'

# What it compiles is counted, which no load of the machine changes: a new test may cost too much.
MOST_PROGRAMS := 5000

test-fast: $(VENV)/with-experiments,test
	$(PYTEST) --fast --most-programs $(MOST_PROGRAMS)

test-rest: $(VENV)/with-experiments,test
	$(PYTEST) -m 'not slow' --rest

test-slow: $(VENV)/with-examples,experiments,onnx,ray,test
	$(PYTEST) -m slow

test-isa: export XLA_FLAGS := --xla_cpu_max_isa=$(ISA)
test-isa: export JAXNORM_TEST_SEED := $(SEED)
test-isa: $(VENV)/with-experiments,test
	$(PYTEST) -m 'numerical and not slow' $(if $(FIRST),--first)

# The library's tests are all but those that import the experiments.
EXPERIMENTS_TESTS := $(shell grep -lE '^(from|import) (experiments|runs_of|components|data_sources|browser|launch_jobs|ray_cluster|hydra)' \
	tests/test_*.py)
LIBRARY_TESTS := jaxnorm $(filter-out $(EXPERIMENTS_TESTS),$(sort $(wildcard tests/test_*.py)))
TESTS ?= $(LIBRARY_TESTS)

# A version is a Python and the lowest or the newest releases: 3.12-lowest; PYTHON_3.12=its path.
PYTHONS := 3.11 3.12 3.13
VERSIONS ?= $(foreach python,$(PYTHONS),$(python)-lowest $(python)-newest)
python = $(or $(PYTHON_$1),$(shell for python in python$1 "$$(pyenv prefix $1 2>/dev/null)/bin/python$1"; do \
	"$$python" -c '' 2>/dev/null && echo "$$python" && break; done))
LOWEST := import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*(package.replace(">=", "==") for package in project["dependencies"]))

test-newest: test-on-3.13-newest

newest-python: has-python-3.13

test-versions:
	@for version in $(VERSIONS); do \
		if $(MAKE) --no-print-directory has-python-$${version%-*}; \
		then $(MAKE) --no-print-directory test-on-$$version || exit; \
		else echo "make test-versions: NOT RUN: $$version" >&2; fi; \
	done

install-%-lowest: .venv-%-lowest/bin/python
	$< $(PIP_INSTALL) $$($< -c '$(LOWEST)') --editable '.[test]'

install-%-newest: .venv-%-newest/bin/python
	$< $(PIP_INSTALL) --upgrade --upgrade-strategy eager --editable '.[test]'

test-on-%: install-%
	.venv-$*/bin/python -m pip freeze --exclude-editable
	.venv-$*/bin/python -m pytest --numprocesses auto --maxprocesses 8 -m 'not slow' $(if $(FIRST),--first) $(TESTS)

COMPILED := .venv-3.13-compiled

install-compiled: $(COMPILED)/installed

test-compiled: install-compiled
	$(COMPILED)/bin/python -m pytest --noconftest --numprocesses auto --maxprocesses 8 tests/test_compiled.py

$(COMPILED)/installed: benchmarks/compiled/requirements.txt | $(COMPILED)/bin/python
	@echo "Installing compilers for an H100 and a TPU v5e into $(COMPILED) ..."
	$(COMPILED)/bin/python $(PIP_INSTALL) --requirement $<
	touch '$@'

.PRECIOUS: .venv-%/bin/python
.venv-%/bin/python:
	@$(MAKE) --no-print-directory has-python-$(firstword $(subst -, ,$*))
	$(call python,$(firstword $(subst -, ,$*))) -m venv .venv-$*

has-python-%:
	@test -n "$(call python,$*)" || { echo "This needs Python $*, and there is neither a python$* nor one" \
	"of pyenv: install one, or give PYTHON_$*=its path" >&2; exit 1; }

bench: $(if $(filter compiled,$(PART)),$(COMPILED)/installed,$(VENV)/with-bench)
	$(if $(filter compiled,$(PART)),$(COMPILED),$(VENV))/bin/python -m benchmarks $(PART) $(if $(FULL),--full)

docs: $(VENV)/with-docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/_build/html

lint: $(VENV)/with-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror jaxnorm/kernels/src/* tests/kernels_test.cc

dist: $(VENV)/with-release
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m tools.check_dist dist

SANITIZED := $(CURDIR)/build/sanitize

sanitize: $(VENV)/with-experiments,test
	cmake -S . -B $(SANITIZED) -DCMAKE_BUILD_TYPE=Debug -DJAXNORM_STRICT=ON -DJAXNORM_SANITIZE=ON \
		-DPython_EXECUTABLE='$(abspath $(BIN)/python)' -DJAXNORM_LIBRARY_DIRECTORY=$(SANITIZED)
	cmake --build $(SANITIZED) --parallel
	$(SANITIZED)/kernels_test
	JAXNORM_KERNELS=$(SANITIZED)/libjaxnorm_kernels.so ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
		$(BIN)/python -m pytest tests/test_kernels_native.py -k 'not status and not threads'

clean:
	rm -rf $(VENV) .venv-* build dist docs/_build jaxnorm/kernels/*.so jaxnorm/kernels/*.dylib

# To compile all modules takes most of an installation. Python compiles those that are imported.
PIP_INSTALL := -m pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE

# What is installed into $(VENV) first after a change compiles the kernels, which takes a minute or more.
KERNELS := CMakeLists.txt $(wildcard jaxnorm/kernels/src/*)
COMPILED_KERNELS = $(shell find jaxnorm/kernels -name 'libjaxnorm_kernels.*' $(KERNELS:%=-newer %))
EDITABLE = --config-settings=$(if $(COMPILED_KERNELS),wheel.cmake=false,cmake.define.JAXNORM_STRICT=ON) --editable

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/with-%: pyproject.toml constraints.txt $(KERNELS) | $(BIN)/python
	@echo "Installing jaxnorm[$*] and its dependencies into $(VENV) ..."
	$(BIN)/python $(PIP_INSTALL) --constraint constraints.txt $(EDITABLE) '.[$*]'
	touch '$@'
