# make study   compare normalizations on real data and write a report (STUDY=norms)
# make test    the tests (make test-slow: those that take long, of several processes)
# make bench   jaxnorm beside its peers; updates the README's tables and figure
#              (PART=speed, memory, precision, collectives or scaling, FULL=1 for more sizes)
# make lint    style and types
# Each makes the virtual environment that it needs, once.

PYTHON ?= python3
STUDY ?= norms
VENV := .venv
BIN := $(VENV)/bin

.PHONY: study test test-slow bench lint clean

study: $(VENV)/with-experiments
	$(BIN)/python -m experiments.train --multirun study=$(STUDY)
	$(BIN)/python -m experiments.report study=$(STUDY)

test: $(VENV)/with-experiments,test
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 -m 'not slow'

test-slow: $(VENV)/with-experiments,test
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 -m slow

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
