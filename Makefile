# make serve: venv, install, start, print the address.   make test: everything that is checked.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
ARGS ?=

.PHONY: serve test venv torch tensorrt-rtx clean

serve: $(VENV)/ready
	$(BIN)/avatar serve $(ARGS)

test: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.suite $(ARGS)

venv: $(VENV)/ready

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed: apt install python3.11 python3.11-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python's venv module is missing: apt install python3-venv"; exit 1; }

# The locks name everything, so nothing is resolved: MediaPipe's wheel would otherwise bring OpenCV's GUI build and jax, unused here.
$(VENV)/ready: $(BIN)/python pyproject.toml requirements.txt
	$(PIP) --no-deps -r requirements.txt
	$(PIP) --no-deps -e .
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready requirements-dev.txt
	$(PIP) --no-deps -r requirements-dev.txt
	@touch $@

# PyTorch and what the diffusion generator needs beside it. What PyTorch itself needs differs by machine, so here pip resolves.
torch: $(VENV)/ready-torch

$(VENV)/ready-torch: $(VENV)/ready requirements-torch.txt
	$(PIP) -c requirements.txt -r requirements-torch.txt
	@touch $@

# TensorRT for RTX, which parses and builds engines without a GPU. Read NVIDIA's licence first; 146 MB.
tensorrt-rtx: $(VENV)/ready-rtx

$(VENV)/ready-rtx: $(VENV)/ready requirements-rtx.txt
	$(PIP) --no-deps -r requirements-rtx.txt
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
