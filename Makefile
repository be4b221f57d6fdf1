# From a fresh clone, two commands:   make book     make test
# Python 3.11 to 3.13; another one than python3:   make book PYTHON=python3.12
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# torch comes as its CPU build: from a local wheel where pip is told of one, else from the index below where it can be
# reached. For a GPU:   make book TORCH_INDEX=https://download.pytorch.org/whl/cu130   (or none, for PyPI's default build)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
reachable = $(shell $(PYTHON) -c 'import urllib.request as u; u.urlopen("$(TORCH_INDEX)/torch/", timeout=5)' 2>/dev/null && echo yes)
EXTRA = $(if $(filter none,$(TORCH_INDEX))$(FINDLINKS),,$(if $(reachable),--extra-index-url $(TORCH_INDEX)))

# uv installs in seconds but ignores pip's settings, so the two that matter are handed over.
setting   = $(shell $(PYTHON) -m pip config get $(1) 2>/dev/null)
FINDLINKS = $(or $(PIP_FIND_LINKS),$(call setting,global.find-links),$(call setting,:env:.find-links))
INDEX     = $(or $(PIP_INDEX_URL),$(call setting,global.index-url))

export PATH := $(abspath $(BIN)):$(PATH)
READY := $(VENV)/.ready
DEV   := $(VENV)/.dev
BENCH := $(VENV)/.bench

# The extra "bench" by name and without dependencies: one of them asks for torchvision, which nothing here uses and whose
# wheels are tied to one build of torch.
COMPETITORS = pyhessian curvlinops-for-pytorch backpack-for-pytorch einconv einops jaxtyping linear-operator opt-einsum \
              unfoldnd wadler-lindig

.PHONY: book test test-all lint serve benchmark clean

book: $(READY)
	@$(BIN)/prunelimit book

# Whole files of tests are dealt out to so many processes, of one thread each: more threads than cores wait for each other.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test: $(READY)
	@$(PYTEST)

test-all: $(READY)
	@$(PYTEST) -m "slow or not slow"

serve: book
	@echo "http://127.0.0.1:8000  (Ctrl-C ends)"
	@$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory _build/html

# Hours on one core, into results/benchmarks. To see that everything runs:   make benchmark BENCHMARK=--quick
benchmark: $(BENCH)
	@$(BIN)/python -m benchmarks $(BENCHMARK)

lint: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/nbstripout --verify notebooks/*.ipynb

clean:
	rm -rf _build figures .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11, 3.12 or 3.13 is needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@echo "setting up $(VENV) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8 2>/dev/null; then \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode $(EXTRA) --index-strategy unsafe-best-match \
	    $(foreach d,$(FINDLINKS),--find-links $(d)) $(if $(INDEX),--default-index $(INDEX)) \
	    -c constraints.txt -e ".[book,test]"; \
	else \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check $(EXTRA) -c constraints.txt -e ".[book,test]"; \
	fi
	@$(BIN)/python -m ipykernel install --sys-prefix --name python3 >/dev/null
	@touch $@

$(DEV): $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

$(BENCH): $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps $(COMPETITORS)
	@touch $@
