# `make demo` and `make test` need Python >= 3.10 and a C++ compiler, and do all the rest in .venv.
# Steps leave stamps there, so that a second call starts at once.

PYTHON ?= python3
VENV ?= .venv
# One version for everybody who develops; options may follow: make TORCH="torch --index-url https://..."
TORCH ?= torch==2.13.0
# --system-site-packages: use the torch and all else that PYTHON already has; needs no network where nothing is missing.
# An environment that exists is used as it is: make VENV=/path/to/it
VENV_FLAGS ?=
# Which extras of pyproject.toml to install; EXTRAS= for none.
EXTRAS ?= dev
# The other libraries that `make test` compares with, an extra as well; PEERS= for none. Tests of one that is absent skip.
PEERS ?= peers
# A worker for each core: most tests have one thread. Tests of one xdist_group share what takes long to make.
PYTEST_WORKERS ?= -n auto --maxprocesses 4 --dist loadgroup
PYTEST_FLAGS ?=
FUZZ_EXAMPLES ?= 2000
SOAK_FLAGS ?=
BENCH_FLAGS ?= --json --plot --report
GPU_FLAGS ?=
SASS_FLAGS ?=
DEMO_FLAGS ?=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export PATH := $(abspath $(VENV))/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PY := $(VENV)/bin/python
# The Ninja generator where there is one; cmake falls back to make by itself.
CMAKE_CONFIGURE := cmake -S . $$(command -v ninja >/dev/null && echo -G Ninja)
CPP_FILES := find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh'

# venv passes on the packages of PYTHON's base only, where PYTHON is itself of a virtual environment; and before Python
# 3.12 it puts an old setuptools of its own in front.
INHERIT := $(PYTHON) -c 'import sys, sysconfig; \
	print(sysconfig.get_path("purelib") if sys.prefix != sys.base_prefix else "")' \
	> "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/inherited.pth"; \
	$(PY) -m pip uninstall --quiet --yes setuptools

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build install demo segment test pytest fuzz soak cpp-test lint format docs bench sass sanitize wheel clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  variables: PYTHON=$(PYTHON) VENV=$(VENV) TORCH="$(TORCH)" EXTRAS=$(EXTRAS) PEERS=$(PEERS)'
	@echo '             VENV_FLAGS PYTEST_WORKERS PYTEST_FLAGS FUZZ_EXAMPLES SOAK_FLAGS BENCH_FLAGS GPU_FLAGS SASS_FLAGS DEMO_FLAGS FOCAL_CUDA_BUILD=auto|cpu|cuda MAX_JOBS'

demo: install  ## set up, then train a detector with three losses; writes demo.png (DEMO_FLAGS=--help)
	$(PY) examples/dense_digits.py $(DEMO_FLAGS)

segment: install  ## the same for a segmentation network; writes segment.png
	$(PY) examples/segment_digits.py $(DEMO_FLAGS)

test: install $(if $(PEERS),$(VENV)/.stamp-peers)  ## set up, then every test: pytest, C++ tests, lint
	@$(MAKE) --no-print-directory pytest cpp-test lint
	@printf '\n== all tests passed\n'

build: $(VENV)/.stamp-tools  ## build in place, incrementally (about 2 s when nothing changed)
	@printf '\n== building the extension\n'
	$(PY) setup.py build_ext --inplace

bench: install  ## measure everything, print tables, write bench/results
	$(PY) -m bench $(BENCH_FLAGS)

sass: install  ## registers, spills, issue slots per element of the CUDA kernels; needs nvcc, no GPU
	$(PY) -m bench.sass $(SASS_FLAGS)

# With what is there: no environment is made and nothing installed, since such a machine may have no network.
gpu:  ## on a GPU machine: build, test, measure, and a verdict in 9 minutes (GPU_FLAGS=--help)
	$(firstword $(wildcard $(PY)) $(PYTHON)) -m bench.gpu $(GPU_FLAGS)

docs: install  ## the site of the documentation, in build/docs; every warning is an error
	$(PY) -m sphinx --fail-on-warning --keep-going --quiet --doctree-dir build/doctrees docs build/docs
	@echo 'built build/docs/index.html'

sanitize: install  ## C++ tests under the address and undefined behaviour sanitizers
	@printf '\n== C++ tests under ASan and UBSan\n'
	$(CMAKE_CONFIGURE) -B build/sanitize -DFOCAL_CUDA_SANITIZE=ON -DFOCAL_CUDA_CUDA=OFF
	cmake --build build/sanitize --parallel
	ctest --test-dir build/sanitize --output-on-failure

fuzz: install  ## hypothesis with other examples on every run (FUZZ_EXAMPLES=2000 of each kind)
	@printf '\n== fuzz\n'
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(PY) -m pytest $(PYTEST_WORKERS) --hypothesis-profile=fuzz $(PYTEST_FLAGS) tests/test_hypothesis.py

wheel: install  ## dist/: sdist and manylinux wheel, each installed into a fresh environment and tried
	@printf '\n== distributions\n'
	TORCH='$(TORCH)' $(PY) -m nox

soak: install  ## trains, saves, loads and compares for ten minutes, memory flat (SOAK_FLAGS=--help)
	@printf '\n== soak\n'
	$(PY) tests/soak.py $(SOAK_FLAGS)

pytest: install
	@printf '\n== pytest\n'
	$(PY) -m pytest $(PYTEST_WORKERS) $(PYTEST_FLAGS)

cpp-test: install
	@printf '\n== C++ tests\n'
	$(CMAKE_CONFIGURE) -B build/cpp
	cmake --build build/cpp --parallel
	ctest --test-dir build/cpp --output-on-failure

lint: install  ## ruff, clang-format
	@printf '\n== lint\n'
	ruff check
	ruff format --check
	$(CPP_FILES) | xargs clang-format --dry-run -Werror

format: install  ## apply ruff's and clang-format's formatting
	ruff check --fix
	ruff format
	$(CPP_FILES) | xargs clang-format -i

clean:  ## remove everything built; the environment stays (rm -r .venv)
	rm -rf build dist docs/_generated *.egg-info focal_cuda/*.so .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# --- set-up ----------------------------------------------------------------------------------------------------------

install: build $(VENV)/.stamp-install

$(VENV)/.stamp-install: pyproject.toml | build
	@printf '\n== installing focal_cuda in $(VENV), editable\n'
	$(PY) -m pip install --no-build-isolation $(if $(EXTRAS),-e '.[$(EXTRAS)]',--no-deps -e .)
	@touch $@

# A convenience as well. Constrained to the torch that is there, whatever TORCH says: torchvision's newest would change it.
$(VENV)/.stamp-peers: pyproject.toml | install
	@printf '\n== installing the libraries that focal_cuda.compat is compared with\n'
	@$(PY) -c 'import torch; print(f"torch=={torch.__version__}")' > $(VENV)/constraints.txt
	@$(PY) -m pip install --retries 1 --no-build-isolation --constraint $(VENV)/constraints.txt -e '.[$(PEERS)]' \
		|| echo 'could not install them: the tests that compare with them are skipped'
	@touch $@

# The package ninja even where the system has one: two versions would keep discarding each other's build logs. It is a
# convenience: without any, torch builds one file at a time.
$(VENV)/.stamp-tools: $(VENV)/.stamp-torch
	@$(PY) -c 'import setuptools, sys; sys.exit(int(setuptools.__version__.split(".")[0]) < 77)' 2>/dev/null \
		|| $(PY) -m pip install 'setuptools>=77'
	@$(PY) -c 'import ninja' 2>/dev/null || $(PY) -m pip install --retries 1 ninja \
		|| echo 'no package ninja: building with the one on PATH, else one file at a time'
	@touch $@

$(VENV)/.stamp-torch: $(VENV)/.stamp-venv
	@if version=$$($(PY) -c 'import sys; sys.path.insert(0, "_build"); import config, torch; \
		config.check_torch_version(torch.__version__); print(torch.__version__)' 2>/dev/null); then \
		printf '\n== torch %s is there\n' "$$version"; \
	else \
		printf '\n== installing %s\n' '$(TORCH)'; \
		$(PY) -m pip install $(TORCH); \
	fi
	@touch $@

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo 'expected Python >= 3.10 as $(PYTHON), got' "$$($(PYTHON) --version 2>&1)"; \
		echo 'install one (Debian, Ubuntu: apt install python3 python3-venv python3-dev), or say make PYTHON=python3.12'; \
		exit 1; }
	@if [ ! -x $(PY) ]; then \
		printf '\n== creating $(VENV) with %s\n' "$$($(PYTHON) --version)"; \
		$(PYTHON) -m venv $(VENV_FLAGS) $(VENV) || { \
			rm -rf $(VENV); \
			echo '$(PYTHON) -m venv failed; install it (Debian, Ubuntu: apt install python3-venv)'; \
			exit 1; }; \
		$(if $(findstring --system-site-packages,$(VENV_FLAGS)),$(INHERIT);) \
	fi
	@touch $@
