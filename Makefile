# The front door. `make demo` and `make test` need nothing but a Debian or Ubuntu machine; see README.md.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := all

# An interpreter that already has torch may be named with TDA_PYTHON; otherwise .venv is made.
ifdef TDA_PYTHON
PYTHON := $(TDA_PYTHON)
else
PYTHON := $(CURDIR)/.venv/bin/python
endif
export TDA_PYTHON_USED := $(PYTHON)
TDA_CUDA ?= AUTO
WERROR := $(if $(CI),ON,OFF)

.PHONY: all setup build python test demo bench lint format asan valgrind fuzz clean help

all: python ## build build/tda and install the Python package

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## install what is missing (Debian packages, .venv)
	@scripts/setup

build: setup
	@cmake --preset release -DTDA_PYTHON="$(PYTHON)" -DTDA_CUDA=$(TDA_CUDA) -DTDA_WERROR=$(WERROR) > build.log 2>&1 \
	  || { cat build.log; exit 1; }; grep -E '^-- CUDA' build.log || true; rm -f build.log
	@cmake --build --preset release

python: build
	@scripts/install-python-package

test: python ## run every test that needs no GPU
	@scripts/test

demo: python ## train and compare a softmax and a TDA model on a CPU (TEXT=my.txt uses your own text)
	@scripts/demo $(if $(TEXT),"$(TEXT)")

bench: python ## CPU benchmarks beside their peers
	@scripts/bench

lint: setup ## clang-format, clang-tidy on changed files, ruff
	@scripts/lint

format: setup ## format the sources
	@scripts/format

asan: setup ## build with address and undefined-behaviour sanitizers and run the C++ tests
	@scripts/test-sanitized

valgrind: build ## run the operator's tests under valgrind
	@scripts/test-valgrind

fuzz: setup ## fuzz every reader of files for ten minutes each
	@scripts/fuzz

clean: ## remove what was built, but not .venv or runs
	rm -rf build
