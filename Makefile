# make demo          the main job on MovieLens-100K, from log to HTTP (KEEP=1 leaves the service up)
# make refresh-demo  a served model of simulated news, a day of posted events, a refresh under requests (OUT, KEEP, PORT too)
# make setup         make the environment .venv and install everything in it; all other targets do it first
#                    (FAISS=gpu takes FAISS for GPUs; it needs an environment without another FAISS: make clean first)
# make lint          check style; make format mends what can be mended
# make test-unit     the unit tier: tests that start no cluster, no service and no training (minutes)
# make test          both tiers without the slow tests, by two processes side by side; what CI runs
# make test-all      every test, the slow ones too (an hour and more)
# make fault-test    every test that kills or cuts off a training, and every ZeRO stage, slow ones too
# make attack-test   hostile requests and connections against a real service, with bounds on CPU seconds and bytes
# make cluster-test  the files of cluster/, Ray over hosts in network namespaces, and the planner
# make gpu-check     one table of training, encoding and search on this machine's GPU, next to its CPU (ARGS="--demo": the demo too)
# make options       write OPTIONS.md from the options in ctxrec/core
# make audit         list known vulnerabilities of the installed packages
# make clean         remove what these made
#
# ARGS="..." is passed on to pytest, as in: make test ARGS="tests/encoder -k pooling".
# Benchmarks are scripts of their own, python tests/bench/NAME.py --help; their results are in tests/bench/RESULTS.md.

PYTHON ?= python3.11
# Ray starts its workers by a command line that it splits at spaces, so a folder whose name has one keeps
# its environment outside.
VENV   := $(if $(word 2,$(CURDIR)),$(HOME)/.cache/ctxrec/venv-$(firstword $(shell pwd -P | cksum)),.venv)
BIN    := $(VENV)/bin
# The package that brings FAISS: cpu, gpu or gpu-cuvs. To change it, make the environment again: make clean setup FAISS=gpu
FAISS  ?= cpu
# Most of a test's time is waiting for processes to start, so two processes take the files in turn, each with a Ray
# cluster of its own.
TWO    := --numprocesses 2 --dist loadfile --no-loadscope-reorder
OUT    ?= demo
SHELL  := /bin/bash

export PATH := $(if $(filter /%,$(BIN)),,$(CURDIR)/)$(BIN):$(PATH)
# A local Ray cluster is this user's own; requests to it must not go through a proxy.
export NO_PROXY := 127.0.0.1,localhost,$(NO_PROXY)
export no_proxy := 127.0.0.1,localhost,$(no_proxy)

.PHONY: help demo refresh-demo test-unit test test-all fault-test attack-test cluster-test lint format options audit clean setup
.DEFAULT_GOAL := help

help:
	@sed -n '/^#/!q; s/^# \?//p' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/.installed

# torch first: where there is no GPU its CPU build, which the other packages then keep.
$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON="; exit 1; }
	@echo "installing (a few minutes the first time) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check torch==2.13.0
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[$(FAISS),dev]'
	@touch $@

demo: setup
	$(BIN)/python -m ctxrec.demo --out $(OUT) $(if $(KEEP),--keep) $(if $(SOURCE),--source $(SOURCE)) $(if $(PORT),--port $(PORT))

refresh-demo: setup
	$(BIN)/python -m ctxrec.demo --refresh --out $(OUT) $(if $(KEEP),--keep) $(if $(PORT),--port $(PORT))

test-unit: setup
	$(BIN)/python -m pytest -m 'unit and not slow' $(TWO) $(ARGS)

test: setup
	$(BIN)/python -m pytest -m 'not slow' $(TWO) $(ARGS)

test-all: setup
	$(BIN)/python -m pytest $(ARGS)

fault-test: setup
	$(BIN)/python -m pytest tests/system/test_faults.py tests/system/test_zero.py tests/system/test_training.py tests/system/test_cluster_jobs.py $(ARGS)

attack-test: setup
	$(BIN)/python -m pytest -m attack $(ARGS)

cluster-test: setup
	$(BIN)/python -m cluster.render --check
	$(BIN)/python -m pytest tests/cluster tests/system/test_cluster*.py tests/training/test_capacity_plan.py $(ARGS)

gpu-check: setup
	$(BIN)/python tests/gpu/gpu_check.py $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

options: setup
	$(BIN)/python tests/options_page.py

audit: setup
	@$(BIN)/pip-audit --local --skip-editable --progress-spinner off --timeout 10

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf '$(VENV)' '$(OUT)' .pytest_cache .ruff_cache *.egg-info
