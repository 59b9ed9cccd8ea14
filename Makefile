# make demo: serve the demo page.   make test: run the tests.   make check: lint, types and quick tests.
# make notebooks, make pictures: make them anew.   make dist: a wheel and an sdist, in dist/.
# make site: the documentation, in build/site.
# make recording: run the demo checkpoint again for demo/static/webui_demo.html; needs Chromium, and a machine with
# nothing else to do.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check notebooks pictures recording site dist clean

demo: .venv/installed
	$(BIN)/python -m demo

test: .venv/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_cache.py tests/test_ops_sampling.py tests/test_rows.py tests/test_text_*.py

notebooks: .venv/installed-test
	$(BIN)/python -m notebooks.execute

pictures: .venv/installed-test
	$(BIN)/python -m docs.pictures
	$(BIN)/python -m docs.request_path

site: .venv/installed-test
	$(BIN)/python -m docs.reference
	$(BIN)/python -m zensical build --strict

recording: .venv/installed-test
	$(BIN)/python -m demo.webui.record

dist: .venv/installed-test
	$(BIN)/python -m build --no-isolation

# One stamp for each set of packages, so that a change of pyproject.toml installs again.
.venv/installed: EXTRA :=
.venv/installed-test: EXTRA := [test]
.venv/installed-dev: EXTRA := [dev]
.venv/installed .venv/installed-test .venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".$(EXTRA)"
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "gemma_tpu needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version): make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv build dist *.egg-info
