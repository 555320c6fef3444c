# make demo        what pruning before training finds among 40,000 inputs: a table, curves and a picture in runs/demo
# make test        the tests, but for those that compile: a few minutes
# make test-slow   those: what is compiled anew, under sanitizers, on the emulator of GPUs, and by nvcc
# make test-aarch64  the operators' tests in an emulator of aarch64 processors, which Debian's packages bring
# make fuzz        properties with new examples, for MINUTES=10
# make wheels      wheels and an sdist in dist/, audited and tested: 10 minutes, more for each Python in TEST
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
# Wheels are built for those of the PYTHONS that are on the PATH, and tested with those in TEST, which install torch.
PYTHONS ?= python3.10 python3.11 python3.12 python3.13 python3.14
TEST ?= python3.11
# What the extension is built of. Another USE_CUDA is another build.
SOURCES := pyproject.toml setup.py $(shell find csrc -type f)
READY := $(VENV)/ready-cuda-$(USE_CUDA)
DEV := $(VENV)/ready-dev
MODELS := $(VENV)/ready-models
DOCS := $(VENV)/ready-docs
# Python compiles what it imports; compiling every file of every package takes 25 s more.
INSTALL := pip install --quiet --no-compile --disable-pip-version-check

# Otherwise every process of the tests compiles anew what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-aarch64 fuzz wheels lint format tables docs bench bench-peers data clean

demo: $(READY) data
	$(BIN)/sparseprune mosaic --out runs/demo

test: $(MODELS)
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

test-slow: $(MODELS)
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m slow

test-aarch64: $(DEV)
	$(BIN)/python tests/emulated.py $(TESTS)

fuzz: $(DEV)
	$(BIN)/python tests/fuzz.py --minutes $(MINUTES) -n 2

wheels: $(DEV)
	$(BIN)/python -m sparseprune.build.wheels --out dist --test $(TEST) -- $(PYTHONS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m bench.tables --check
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

# The tables of README, docs and results, from the results in bench/results.
tables: $(DEV)
	$(BIN)/python -m bench.tables

# The documentation site, in docs/_build/index.html. A warning is an error.
docs: $(DOCS)
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . docs/_build

bench: $(DEV)
	$(BIN)/python -m bench.run --out bench/results/$$(date +%F).jsonl

# The suite with other libraries beside, in an environment of their own.
bench-peers: $(PEERS)/ready
	$(PEERS)/bin/python -m bench.run --out bench/results/$$(date +%F)-peers.jsonl

# Fashion-MNIST comes from the system's package manager; without it the demo's tiles are the 5,000 digits that pip brought.
data:
	@test -d $(FASHION) || (test "$$(id -u)" = 0 && command -v apt-get > /dev/null && \
	  apt-get update -qq && apt-get install -y -qq dataset-fashion-mnist > /dev/null) || \
	  echo "Fashion-MNIST cannot be installed here (apt-get install dataset-fashion-mnist): the demo takes MNIST-5k"

# torch first and alone, so that no other package's range brings another build of it.
$(READY): requirements-demo.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/ready-*
	$(BIN)/$(INSTALL) $$(grep '^torch==' requirements-demo.txt)
	$(BIN)/$(INSTALL) -r requirements-demo.txt
	USE_CUDA=$(USE_CUDA) $(BIN)/$(INSTALL) --no-build-isolation --no-deps -e .
	touch $@

$(DEV): requirements-dev.txt $(READY)
	$(BIN)/$(INSTALL) -r requirements-dev.txt
	touch $@

# transformers, timm, Lightning and ONNX, which tests and examples use.
$(MODELS): requirements-models.txt $(DEV)
	$(BIN)/$(INSTALL) -r requirements-models.txt
	touch $@

$(DOCS): requirements-docs.txt $(READY)
	$(BIN)/$(INSTALL) -r requirements-docs.txt
	touch $@

# sparseprop is compiled against the torch that is there.
$(PEERS)/ready: requirements-demo.txt requirements-dev.txt $(SOURCES)
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/$(INSTALL) $$(grep '^torch==' requirements-demo.txt)
	$(PEERS)/bin/$(INSTALL) -r requirements-dev.txt sparse_dot_mkl==0.9.10 mkl==2026.2.0 \
	  sparselab==0.2.2
	$(PEERS)/bin/$(INSTALL) --no-build-isolation --no-deps sparseprop==0.1.14
	USE_CUDA=$(USE_CUDA) $(PEERS)/bin/$(INSTALL) --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) build dist *.egg-info sparseprune/*.so
