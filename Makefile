# make serve | test | install | lint | fix | audit | trials | bench | soak | demo | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
INPUTS := pyproject.toml constraints.txt clients/python/pyproject.toml adapters/cdvft/kernels/shared.h adapters/cdvft/kernels/native.c server/cdvft_server/engine/attention.c

.PHONY: install serve test lint fix audit trials bench soak demo clean

install: $(VENV)/.installed

$(VENV)/.installed: $(INPUTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v[:2] <= (3, 13) else f"Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}: call make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)" >&2
	@$(PIP_INSTALL) -e clients/python -e '.[dev]'
	@touch $@

serve: install
	@$(BIN)/cdvft serve

test: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -m "not trial and not soak"

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fix: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# known vulnerabilities of what is installed; says so, and passes, where the advisory service cannot be asked
audit: install
	@$(BIN)/python tests/audit.py

# real data and models: the folder `shared` beside the project, or CDVFT_TRIAL_INPUTS; skips with a message without it
trials: install
	$(BIN)/pytest tests/e2e -m trial -s --timeout=7200

bench: install
	$(BIN)/cdvft bench classify --shape roberta-base
	$(BIN)/cdvft bench generate --shape llama-160m --runs 3
	$(BIN)/python -m tests.bench.run

soak: install
	$(BIN)/pytest -m soak -s --timeout=7200

# rebuild the embedded base and its demo adapters from the grammar in server/demo
demo: install
	$(BIN)/python server/demo/build.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build
