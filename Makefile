# make fit    set everything up, then train the small policy in the LIBERO simulator
# make test   set everything up, then run the tests
# make setup  the set-up alone, into .venv
# ARGS="mask=random seed=2" is passed on to the program.
PYTHON ?= python3
VENV := .venv

.PHONY: setup fit test
fit: setup
	$(VENV)/bin/python -m vla_rl.fit conf=pcm_object_tiny $(ARGS)

test: setup
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt tools/setup.sh
	tools/setup.sh $(PYTHON) $(VENV)
	touch $@
