# make serve | test | install | lint | fix | trials | bench | soak
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
INPUTS := pyproject.toml constraints.txt clients/python/pyproject.toml

.PHONY: install serve test lint fix trials bench soak clean

install: $(VENV)/.installed

$(VENV)/.installed: $(INPUTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v[:2] <= (3, 13) else f"Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}: call make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)" >&2
	@$(PIP_INSTALL) -e clients/python -e '.[dev]'
	@touch $@
