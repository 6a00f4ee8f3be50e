# make fit    set everything up, then train the small policy in the LIBERO simulator
# make test   set everything up, then check everything: lint, types, documentation, tests with coverage
# make setup  the set-up alone, into .venv
# make test-gpu   what only a CUDA device can show
# make lint, make types, make docs   one of the checks alone
# ARGS="mask=random seed=2" is passed on to the program of `make fit`, ARGS="-k masks" to pytest.
PYTHON ?= python3
VENV := .venv
# least share of covered lines, in percent, of a whole run of the tests
FLOOR := $(if $(ARGS),,--cov-fail-under=93)
SOURCES := vla_rl callbacks tools tests

# what Python has compiled once it need not compile again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup fit test test-gpu lint types docs
fit: setup
	$(VENV)/bin/python -m vla_rl.fit conf=ppo_object_tiny $(ARGS)

test: lint  # a test checks the types, another builds the documentation
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered $(FLOOR) $(ARGS)

test-gpu: setup
	$(VENV)/bin/python -m pytest -m gpu -rs tests/gpu $(ARGS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check $(SOURCES)

types: setup
	$(VENV)/bin/python -m mypy

docs: setup
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt tools/setup.sh
	tools/setup.sh $(PYTHON) $(VENV)
	touch $@
