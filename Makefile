# make study   compare normalizations on real data and write a report (STUDY=norms)
# make test    the tests (make test-fast: one case of each that is quick; make test-slow: those that
#              take long, of several processes)
# make test-isa   the numerical tests as on a processor of fewer instructions (ISA=AVX2), with another
#              seed of the random draws where it is given (SEED=0)
# make bench   jaxnorm beside its peers; updates the README's tables and figure
#              (PART=speed, memory, precision, collectives or scaling, FULL=1 for more sizes)
# make lint    style and types
# Each makes the virtual environment that it needs, once.

PYTHON ?= python3
STUDY ?= norms
ISA ?= AVX2
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: study test test-fast test-slow test-isa bench lint clean

study: $(VENV)/with-experiments
	$(BIN)/python -m experiments.train --multirun study=$(STUDY)
	$(BIN)/python -m experiments.report study=$(STUDY)

PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

test: $(VENV)/with-experiments,test
	$(PYTEST) -m 'not slow'

test-fast: $(VENV)/with-experiments,test
	$(PYTEST) -m 'not slow and not long' --first

test-slow: $(VENV)/with-experiments,test
	$(PYTEST) -m slow

test-isa: export XLA_FLAGS := --xla_cpu_max_isa=$(ISA)
test-isa: export JAXNORM_TEST_SEED := $(SEED)
test-isa: $(VENV)/with-experiments,test
	$(PYTEST) -m 'numerical and not slow'

bench: $(VENV)/with-bench
	$(BIN)/python -m benchmarks $(PART) $(if $(FULL),--full)

lint: $(VENV)/with-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/with-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing jaxnorm[$*] and its dependencies into $(VENV) ..."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch '$@'
