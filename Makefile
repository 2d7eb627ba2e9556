# The commands do all their own set-up, in .venv (test-nnunet in .venv-nnunet, of 6 GB); the second call finds it done.
# Wanted: Python >= 3.10 with pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo check test test-nnunet test-lowest test-wheel lint docs

# A demo that was interrupted goes on; a finished one is made anew.
demo: .venv/demo-installed
	@if [ -e demo/report.html ] || [ ! -d demo/Dataset152_ICBM ]; then rm -rf demo; fi
	PATH="$(CURDIR)/$(BIN):$$PATH" dinounet demo --output demo $$(test -d demo && echo --resume)

# For every commit, in about a minute.
check: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" --durations=5

test: .venv/dev-installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=10

# Agreement with nnU-Net, which `make test` skips: nnunetv2 and the newest timm don't go into one environment.
test-nnunet: .venv-nnunet/installed
	.venv-nnunet/bin/python -m pytest --durations=5 tests/test_nnunet_*.py

# The wheel in an environment that holds nothing else reads, plans, predicts by exported networks and reports.
test-wheel:
	rm -rf .venv-wheel
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir .venv-wheel .
	.venv-wheel/bin/pip install --quiet --disable-pip-version-check .venv-wheel/*.whl
	.venv-wheel/bin/dinounet --help
	.venv-wheel/bin/python tests/base_install.py

# The lowest versions that pyproject.toml allows, of Python too where pyenv has it.
test-lowest: .venv-lowest/installed
	.venv-lowest/bin/python -m pytest -n 2 --dist loadfile -m "not slow" -o filterwarnings=default \
		--ignore tests/test_formats_of_weights.py --ignore tests/test_site.py  # whose packages want newer ones

# The site, in site/; python3 -m http.server --directory site shows it with its search.
docs: .venv/dev-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: .venv/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv-lowest/bin/python: PYTHON := $(or $(firstword $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python)),$(PYTHON))

.venv/bin/python .venv-nnunet/bin/python .venv-lowest/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "dinounet needs Python 3.10 or newer; set PYTHON")'
	$(PYTHON) -m venv $(@:/bin/python=)

.venv/demo-installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	touch $@

.venv/dev-installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ .venv/demo-installed

.venv-nnunet/installed: pyproject.toml | .venv-nnunet/bin/python
	.venv-nnunet/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,nnunet]'
	touch $@

.venv-lowest/installed: pyproject.toml | .venv-lowest/bin/python
	.venv-lowest/bin/python tests/lowest_versions.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv-lowest/constraints.txt \
		--editable '.[train,demo,dicom,export,track]' pytest pytest-xdist hypothesis jsonschema scikit-learn openvino monai sybil
	touch $@
