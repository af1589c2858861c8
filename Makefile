# Every target works alone on a fresh clone: it makes .venv and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUICK := tests/engine tests/config tests/test_contract.py tests/test_learning.py tests/envs/llm/test_recipes.py

.PHONY: install demo quick test check exhaustive format learn bench bench-tui fuzz torture mutants pictures docs wheel-check clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install  ## train CartPole until it is solved
	$(BIN)/ppo-unified train cartpole
	@echo "(ppo-unified is a command after: source $(BIN)/activate)"

quick: install  ## engine, configuration, adapter contract, CartPole and token runs (under a minute)
	$(BIN)/python -m pytest -n 3 --dist loadfile $(QUICK)

test: install  ## all tests
	$(BIN)/python -m pytest -n 3 --dist loadfile

check: install  ## what a commit must pass: formatting, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPY_NUM_WORKERS=2 $(BIN)/mypy
	$(BIN)/python -m pytest -n 3 --dist loadfile

exhaustive: install  ## the cases that `make test` leaves out (minutes)
	$(BIN)/python -m pytest -n 2 -m exhaustive

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

learn: install  ## the learning tables: every preset over seeds (about three quarters of an hour)
	$(BIN)/python benchmarks/learning.py --out benchmarks/learning.md
	$(BIN)/python benchmarks/language.py --out benchmarks/language.md

bench: install  ## CartPole from cold start to solved
	$(BIN)/python benchmarks/cold_start.py

bench-tui: install  ## the terminal UI in a pseudo-terminal: answers to keys, processor time, memory (about 4 minutes)
	$(BIN)/python benchmarks/terminal_ui.py --out benchmarks/tui.md

fuzz: install  ## 20,000 inputs that nobody would write for every parser (about an hour)
	$(BIN)/python -m tests.fuzz --out benchmarks/fuzz.md

torture: install  ## kill runs at any moment, resume them, and compare (about a quarter of an hour)
	$(BIN)/python benchmarks/torture.py --out benchmarks/reliability.md

mutants: install  ## break the engine one thing at a time: the tests must notice each
	$(BIN)/python tests/mutants.py

pictures: install  ## the pictures of the terminal UI in docs/
	$(BIN)/python docs/pictures.py

docs: install  ## the documentation site in build/site; a broken link is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

wheel-check: install  ## the wheel, installed and used outside the checkout
	$(BIN)/python tests/wheel_check.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
