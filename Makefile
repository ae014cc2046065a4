# make study   compare normalizations on real data and write a report (STUDY=norms)
# make test    the tests (make test-slow: those that take long, of several processes)
# make bench   jaxnorm beside its peers; updates the README's tables and figure
#              (PART=speed, memory, precision, collectives or scaling, FULL=1 for more sizes)
# make lint    style and types
# make sanitize  the kernels under AddressSanitizer and UndefinedBehaviorSanitizer
# Each makes the virtual environment that it needs, once.

PYTHON ?= python3
STUDY ?= norms
VENV := .venv
BIN := $(VENV)/bin

.PHONY: study test test-slow bench lint sanitize clean

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
	$(BIN)/clang-format --dry-run --Werror jaxnorm/kernels/src/* tests/kernels_test.cc

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
	rm -rf $(VENV) build jaxnorm/kernels/*.so jaxnorm/kernels/*.dylib

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

KERNELS := CMakeLists.txt $(wildcard jaxnorm/kernels/src/*)

$(VENV)/with-%: pyproject.toml constraints.txt $(KERNELS) | $(BIN)/python
	@echo "Installing jaxnorm[$*] and its dependencies into $(VENV) ..."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --config-settings=cmake.define.JAXNORM_STRICT=ON \
		--editable '.[$*]'
	touch '$@'
