# Every target works on a fresh clone: it first creates .venv and installs the dependencies.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BEFORE ?= HEAD^
unexport PYTHONDONTWRITEBYTECODE # modules are compiled once, not in each of the hundreds of processes that tests start
QUICK := tests/engine tests/config tests/test_contract.py tests/test_learning.py tests/envs/llm/test_recipes.py

.PHONY: install demo quick test check exhaustive format learn bench bench-peers bench-mujoco bench-tui fuzz torture mutants pictures study docs wheel-check families clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is required; select one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install  ## train CartPole until it is solved
	$(BIN)/ppo-unified train cartpole
	@echo "To use the command ppo-unified, run: source $(BIN)/activate"

quick: install  ## the tests of the engine, configuration, adapter contract, and short runs (under a minute)
	$(BIN)/python -m pytest -n 3 --dist loadfile $(QUICK)

test: install  ## all tests
	$(BIN)/python -m pytest -n 3 --dist loadfile

check: install  ## formatting, lint, types and all tests, which every commit must pass
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPY_NUM_WORKERS=2 $(BIN)/mypy
	$(BIN)/python -m pytest -n 3 --dist loadfile

exhaustive: install  ## the slow test cases that `make test` skips (minutes)
	$(BIN)/python -m pytest -n 2 -m exhaustive

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

learn: install  ## learning results of every preset over several seeds; delete learning.jsonl to repeat all (45 minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[minigrid]'
	$(BIN)/python benchmarks/learning.py --out benchmarks/learning.md --jobs 2
	$(BIN)/python benchmarks/language.py --out benchmarks/language.md

bench: install  ## the speed of CartPole runs, now and in the Git revision BEFORE (4 minutes on an idle machine)
	$(BIN)/python benchmarks/classic_speed.py --before $(BEFORE)

bench-peers: install  ## the speed of CartPole runs beside stable-baselines3, which gets its own environment (10 minutes)
	$(PYTHON) -m venv build/peers
	build/peers/bin/pip install --quiet --disable-pip-version-check -c constraints.txt stable-baselines3
	$(BIN)/python benchmarks/classic_speed.py --peer-python build/peers/bin/python --repeat 10 --out benchmarks/classic_peers.md

bench-mujoco: install  ## compare MuJoCo presets with stable-baselines3 (8 hours; finished runs are not repeated)
	$(PYTHON) -m venv build/peers
	build/peers/bin/pip install --quiet --disable-pip-version-check -c constraints.txt stable-baselines3 'gymnasium[mujoco]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mujoco]'
	$(BIN)/python benchmarks/mujoco_scores.py --peer-python build/peers/bin/python --out benchmarks/mujoco.md

bench-tui: install  ## response time, CPU time and memory of the terminal UI (4 minutes)
	$(BIN)/python benchmarks/terminal_ui.py --out benchmarks/tui.md

fuzz: install  ## 20,000 malformed inputs for every parser (1 hour)
	$(BIN)/python -m tests.fuzz --out benchmarks/fuzz.md

torture: install  ## kill runs at random moments, resume them and compare the results (15 minutes)
	$(BIN)/python benchmarks/torture.py --out benchmarks/reliability.md

mutants: install  ## break the engine in one place at a time; the tests must notice each change
	$(BIN)/python tests/mutants.py

pictures: install  ## the screenshots of the terminal UI in docs/pictures/
	$(BIN)/python docs/pictures.py

study: install  ## the numbers and the pages of docs/study/, from ppo_unified/study/ and docs/study/run/
	$(BIN)/python docs/make_study.py

families: install  ## train a small model of every type that benchmarks/families.md lacks (15 minutes)
	$(BIN)/python benchmarks/families.py

docs: install  ## the documentation site in build/site; a broken link is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

wheel-check: install  ## build the wheel, then install and use it outside the checkout
	$(BIN)/python tests/wheel_check.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
