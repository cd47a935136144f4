# `make demo` trains and evaluates the embedded default; `make test` runs everything that must hold;
# `make parity` compares with the original PyTorch libraries, live.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu

.PHONY: demo test parity lint clean

demo: $(VENV)/.installed
	$(BIN)/python train.py configs/digits.py
	$(BIN)/python eval.py runs/digits

# Two halves at once, for two cores; the second one's report follows that of the first.
test: $(VENV)/.installed-test
	@log=$$(mktemp); \
	$(BIN)/python -m pytest tests/train >$$log 2>&1 & training=$$!; \
	trap 'kill $$training' INT TERM; \
	$(BIN)/python -m pytest --ignore=tests/parity --ignore=tests/train; status=$$?; \
	wait $$training || status=1; \
	cat $$log; rm $$log; exit $$status

parity: $(VENV)/.installed-parity
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest tests/parity

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $@

# These five would pull gigabytes of CUDA in; they do their work here on PyTorch for the CPU.
$(VENV)/.installed-parity: $(VENV)/.installed-test
	$(BIN)/python -m pip install -q -e '.[parity]'
	$(BIN)/python -m pip install -q --no-deps open_clip_torch==3.3.0 timm==1.0.31 torchvision==0.29.2 openai-clip==1.0.1 clip_benchmark==1.6.2
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
