# `make demo` and `make test` set themselves up in .venv; nothing else is needed beforehand.
# The first interpreter that starts and is new enough (a pyenv shim may be on the path and not start).
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: setup demo test torture check docs

# A private environment with exactly the locked packages, and this project on top.
setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement .ci/uv.lock
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock .ci/uv.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# The main job on real input: a pretrained teacher, a cache, a small student, and a table (under five minutes).
demo: setup
	$(BIN)/featurecache demo

# The whole test suite, on every core: one thread for each process, since more would only wait for each other.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# The tests of crashes, with ten times as many kills, power cuts and races (some minutes).
torture: setup
	FEATURECACHE_KILLS=200 $(BIN)/python -m pytest tests/crash

# Formatting, lint and types.
check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The command-line reference, rewritten from the commands' own help.
docs: setup
	$(BIN)/python docs/write_cli_reference.py
