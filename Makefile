# Everything runs in its own environment, .venv, which the first target that needs it sets up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

ENV ?= SpaceInvadersNoFrameskip-v4
# A run of some minutes, to see it work. A good agent takes 1M steps and more: ARGS="-P -n 1000000"
ARGS ?= -P -n 20000 --eval-freq 10000 --log-interval 20 -params learning_starts:2000 exploration_fraction:0.5

.PHONY: train test test-slow lint format type clean

$(VENV)/.installed: pyproject.toml constraints.txt dqn_ext.pth dqn_ext_hook.py
	$(PYTHON) -m venv $(VENV)
	# torch first: asked for by name it can be the small CPU build
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# Train ddqn on Space Invaders; with a game, and any flag of the Zoo's: make train ENV=PongNoFrameskip-v4 ARGS="-n 50000 -P"
train: $(VENV)/.installed
	$(BIN)/python -m rl_zoo3.train --algo ddqn --env $(ENV) $(ARGS)
	@$(BIN)/python scripts/report_run.py --env $(ENV) $(ARGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder tests

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow tests

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(VENV)/.installed
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
