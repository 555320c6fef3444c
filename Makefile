# make demo   prune, train sparse and dense side by side, and print what came out (results in runs/demo)
# make test   all tests
# Both make their own virtual environment, install what they need and build the extension.

PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
FASHION := /usr/share/datasets/fashion-mnist

.PHONY: demo test lint format bench bench-peers data clean

demo: $(VENV)/ready data
	$(BIN)/sparseprune compare --epochs 4 --budget dense --out runs/demo \
	  --data $$(test -d $(FASHION) && echo fashion-mnist || echo mnist5k --epochs 20)

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

bench: $(VENV)/ready
	$(BIN)/python -m bench.run --out bench/results/$$(date +%F).jsonl

# The suite with other libraries beside, in an environment of their own.
bench-peers: $(PEERS)/ready
	$(PEERS)/bin/python -m bench.run --out bench/results/$$(date +%F)-peers.jsonl

# Fashion-MNIST comes from the system's package manager; without it the demo takes the 5,000 digits that pip brought.
data:
	@test -d $(FASHION) || (test "$$(id -u)" = 0 && command -v apt-get > /dev/null && \
	  apt-get update -qq && apt-get install -y -qq dataset-fashion-mnist > /dev/null) || \
	  echo "Fashion-MNIST cannot be installed here (apt-get install dataset-fashion-mnist): the demo takes MNIST-5k"

# torch first and alone, so that no other package's range brings another build of it.
$(VENV)/ready: requirements-dev.txt pyproject.toml setup.py $(wildcard csrc/* csrc/cpu/* csrc/cuda/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $$(grep '^torch==' requirements-dev.txt)
	$(BIN)/pip install --quiet -r requirements-dev.txt
	$(BIN)/pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

# sparseprop is compiled against the torch that is there.
$(PEERS)/ready: requirements-dev.txt pyproject.toml setup.py $(wildcard csrc/* csrc/cpu/* csrc/cuda/*)
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet $$(grep '^torch==' requirements-dev.txt)
	$(PEERS)/bin/pip install --quiet -r requirements-dev.txt sparse_dot_mkl==0.9.10 mkl==2026.2.0
	$(PEERS)/bin/pip install --quiet --no-build-isolation --no-deps sparseprop==0.1.14
	$(PEERS)/bin/pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) build dist *.egg-info sparseprune/*.so
