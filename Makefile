# Two commands for a fresh machine with Python 3.11 and pip: `make demo` and `make test`; `make test-all` runs the long drills, too.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-all test-ray test-rest lint links clean

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

# The drills too: kills, lost nodes, deployment, sweeps.
test-all: setup
	$(MAKE) -j2 VENV=$(VENV) SLOW=1 test-ray test-rest

test-ray test-rest: setup
	$(BIN)/python -m pytest --durations 15 $(PYTEST_ARGS) -m "$(if $(filter test-ray,$@),ray,not ray)$(if $(SLOW),, and not slow)"

lint: setup links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The package as it is installed, for mypy and editors: folders of the checkout under the name clipsan.
links:
	mkdir -p build/links/clipsan
	ln -sfn ../../../pipeline build/links/clipsan/pipeline
	ln -sfn ../../../stages build/links/clipsan/stages
	ln -sfn ../../../conf build/links/clipsan/conf
	ln -sfn ../../../pipeline/api/__init__.py build/links/clipsan/__init__.py

clean:
	rm -rf $(VENV) build *.egg-info
