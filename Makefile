# Both commands do all their own set-up, in .venv; the second call finds it done. Wanted: Python >= 3.10 with pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint

# A demo that was interrupted goes on; a finished one is made anew.
demo: .venv/demo-installed
	@if [ -e demo/report.html ] || [ ! -d demo/Dataset152_ICBM ]; then rm -rf demo; fi
	PATH="$(CURDIR)/$(BIN):$$PATH" dinounet demo --output demo $$(test -d demo && echo --resume)

test: .venv/dev-installed
	$(BIN)/python -m pytest --durations=10

lint: .venv/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "dinounet needs Python 3.10 or newer; set PYTHON")'
	$(PYTHON) -m venv .venv

.venv/demo-installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	touch $@

.venv/dev-installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ .venv/demo-installed
