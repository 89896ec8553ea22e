# `make compare` answers "should I switch to sigmoid attention, and what does it cost?".
# `make test` runs the tests, in 5 minutes. Both make .venv first; `make env` does only that.
# `make quick` runs those of them that take little time, in one minute.
# `make test-all` runs everything, in 30 minutes: what `make test` leaves out, the other vector paths
# of the CPU kernel, the sanitizers, and the library in an environment that has torch alone.
# `make update` renews constraints/lock.txt and runs all tests with it.
# `make test-newest` runs the integrations' tests against the newest releases.
# `make bench-cpu` measures how fast the operator is on this CPU and writes docs/benchmarks.md.
# `make bench-gpu` measures the GPU operators, their errors and their peers on one NVIDIA GPU.
# `make docs` builds the documentation site into build/site.
# `make sanitize` runs the CPU kernel's tests with its memory and its arithmetic watched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCK := constraints/lock.txt
MEND := tools/torchvision_cpu_mend.py
NEWEST := .venv-newest
SOURCES := src tests benchmarks tools examples hatch_build.py docs/docstrings.py conftest.py
PYTEST_OPTIONS := -n auto --dist worksteal --durations=10
PYTEST := $(BIN)/python -m pytest $(PYTEST_OPTIONS)
PIP := -m pip install --quiet --disable-pip-version-check

# Tiers are markers: pyproject.toml says what they mean, tests/conftest.py who has them.
FULL := slow or matrix or budgets or emulator or browser
NOT_QUICK := $(FULL) or long or kernel or compile or models or process
# Property tests run in both tiers, with few examples in `make test` and all of them here.
REST := --hypothesis-profile ci -m "$(FULL) or hypothesis"
# What depends on the kernel's vector path; how a kernel is built does not.
KERNEL_TESTS := tests/attention/impl/cpu --ignore=tests/attention/impl/cpu/building \
  --hypothesis-profile ci
# At 16384 keys the kernel walks as at 1024: the best vector path is tested there, the others and the
# watched kernel, which takes minutes, are not. Whether digits are lost is no question of memory: the
# watched kernel does not run those tests.
OTHERS := $(KERNEL_TESTS) -m "not one_path"
SANITIZED := $(KERNEL_TESTS) -m "not (one_path or precision)"
SANITIZERS := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined \
  -fno-omit-frame-pointer

.PHONY: env update compare bench-cpu bench-gpu quick test test-all test-rest test-paths test-newest \
  test-torch-only sanitize docs check format clean

env: $(READY)

# The lock is a list of constraints: which build of torch is taken, for CPUs or for CUDA, is left to
# pip's own settings. Without build isolation hatchling is the locked one, too.
$(READY): pyproject.toml $(LOCK) $(MEND)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "make: this Python cannot create virtual environments (Debian and Ubuntu: install python3-venv)"; exit 2; }
	@echo "make: installing the locked packages into $(VENV): some minutes, and up to 6 GB where torch is a CUDA build"
	@$(BIN)/python $(PIP) -c $(LOCK) hatchling
	@$(BIN)/python $(PIP) -c $(LOCK) --no-build-isolation -e '.[dev]'
	@$(BIN)/python $(MEND)
	@touch $@

update: $(READY)
	UV_CUSTOM_COMPILE_COMMAND="make update" $(BIN)/uv pip compile --quiet --universal --upgrade \
	  --python-version 3.11 --no-annotate --extra dev --extra docs pyproject.toml -o $(LOCK)
	$(MAKE) test-all

compare: $(READY)
	$(BIN)/sigmoid-attention compare --out runs/compare --resume

# Goes on where it was interrupted; what changed since, the operator or the machine, is measured
# again. Nothing else should run meanwhile, for about an hour on two cores.
bench-cpu: $(READY)
	$(BIN)/python -m benchmarks cpu --long --resume --out benchmarks/results
	-$(BIN)/python -m benchmarks options --out benchmarks/results
	$(BIN)/python -m benchmarks publish benchmarks/results

# In less than nine minutes; what found no time is measured by the next call. It needs a CUDA build
# of torch: where that is there already, run these two lines with its Python, without a network as
#   PYTHONPATH=src:wheels python3 -m benchmarks gpu --out benchmarks/results --resume
#   PYTHONPATH=src:wheels python3 -m benchmarks publish benchmarks/results  (with matplotlib)
# where wheels is a folder that docs/gpu.md says how to make.
bench-gpu: $(READY)
	$(BIN)/python -m benchmarks gpu --resume --out benchmarks/results
	$(BIN)/python -m benchmarks publish benchmarks/results

quick: $(READY)
	$(PYTEST) -m "not ($(NOT_QUICK))"

test: $(READY)
	$(PYTEST) -m "not ($(FULL))"

test-all: test test-rest test-paths test-torch-only sanitize

test-rest: $(READY)
	$(PYTEST) $(REST)

# The tests above take the best vector path; here are the others that this processor runs.
test-paths: $(READY)
	@paths=$$($(BIN)/python -m sigmoid_attention.attention.impl.cpu) && set -- $$paths && shift && \
	for path; do \
	  echo "The CPU kernel's vector path $$path:"; \
	  SIGMOID_ATTENTION_CPU=$$path $(PYTEST) $(OTHERS) || exit 1; \
	done

test-torch-only: $(READY)
	PYTHON=$(PYTHON) tools/torch_only.sh

# torch stays the locked one: a newer torch is a change of its own, made in pyproject.toml.
test-newest: $(READY)
	$(PYTHON) -m venv --clear $(NEWEST)
	grep -E '^(torch|torchvision|triton)==' $(LOCK) > $(NEWEST)/torch.txt
	$(NEWEST)/bin/python $(PIP) -c $(NEWEST)/torch.txt -e '.[dev]'
	$(NEWEST)/bin/python $(MEND)
	$(NEWEST)/bin/python -m pytest $(PYTEST_OPTIONS) tests/integrations tests/cli/test_convert.py

# Python itself leaks. Capturing by file descriptor would swallow the report of a process that dies,
# and with that process the run should end.
sanitize: $(READY)
	SIGMOID_ATTENTION_CXXFLAGS="$(SANITIZERS)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so):$$($(CXX) -print-file-name=libubsan.so)" \
	$(PYTEST) --max-worker-restart=0 --capture=sys $(SANITIZED)

# A warning, such as a broken link, is an error.
docs: $(READY)
	$(BIN)/python $(PIP) -c $(LOCK) --no-build-isolation -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

check: $(READY)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean:
	rm -rf $(VENV) $(NEWEST) build runs dist .pytest_cache .ruff_cache
