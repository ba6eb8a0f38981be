# Thin: each line is a command that a person could type. `make help` lists the targets.
PYTHON ?= python3
# What pytest gets: a path, or options such as TESTS='tests -m slow'.
TESTS ?= tests
MODELS := smollm2-135m-instruct whisper-base whisper-tiny.en
BIN := .venv/bin

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.PHONY: help install models demo lint format test train-tiny

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 10

install: .venv/.installed  ## make .venv with everything for demo and test

# torch goes first and pinned: a bare `torch` brings gigabytes of CUDA where a CPU build would do.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

models: install  ## fetch the base models that the embedded default stands on
	$(BIN)/llasm models pull $(MODELS)

demo: install models  ## a voice chat in the browser
	$(BIN)/llasm serve --open

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# pytest comes last, so that the last line is its own.
test: install models lint  ## lint, then the tests that are neither slow nor gpu
	$(BIN)/python -m pytest $(TESTS)

train-tiny: install models  ## the embedded default anew, from the public text and speech in DATA (hours; goes on when run again)
	train/tiny.sh "$(DATA)"
