# make demo        prune, train sparse and dense side by side, and print what came out (results in runs/demo)
# make test        the tests, but for those that compile: a few minutes
# make test-slow   those: what is compiled anew, under sanitizers, on the emulator of GPUs, and by nvcc
# make fuzz        properties with new examples, for MINUTES=10
#
# All make their own virtual environment, install what they need and build the extension: without CUDA kernels,
# which take minutes to compile, unless USE_CUDA=1 is given.

PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
FASHION := /usr/share/datasets/fashion-mnist
USE_CUDA ?= 0
MINUTES ?= 10
# What the extension is built of. Another USE_CUDA is another build.
SOURCES := pyproject.toml setup.py $(shell find csrc -type f)
READY := $(VENV)/ready-cuda-$(USE_CUDA)

.PHONY: demo test test-slow fuzz lint format tables bench bench-peers data clean

demo: $(READY) data
	$(BIN)/sparseprune compare --epochs 4 --budget dense --out runs/demo \
	  --data $$(test -d $(FASHION) && echo fashion-mnist || echo mnist5k --epochs 20)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m slow

fuzz: $(READY)
	$(BIN)/python tests/fuzz.py --minutes $(MINUTES) -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m bench.tables --check
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

# The tables of README, docs and results, from the results in bench/results.
tables: $(READY)
	$(BIN)/python -m bench.tables

bench: $(READY)
