# Two commands for a fresh machine with Python 3.11 and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-ray test-rest lint clean

setup: $(VENV)/.installed

# One install for users and developers: torch is most of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/clipsan demo

# Side by side: the tests that use Ray wait for its processes much of the time.
test: setup
	$(MAKE) -j2 VENV=$(VENV) test-ray test-rest

test-ray test-rest: setup
	$(BIN)/python -m pytest --durations 15 -m "$(if $(filter test-ray,$@),ray,not ray) and not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
