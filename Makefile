# One command each; `make` alone lists them. CONTRIBUTING.md says more.

PYTHON ?= python3
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
# -I: the current folder holds the package's sources, which must not stand for the installed package.
PIP := $(PY) -I -m pip --disable-pip-version-check --quiet
WHEELS := build/wheel
SOURCES := pyproject.toml CMakeLists.txt $(shell find nsmagic -name '*.py' -o -name '*.[ch]' -o -name '*.txt' \
	-o -path '*/kernel/data/*' -type f)

# Root's JupyterLab wants to be told that it may run.
ALLOW_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

# Where the tests' second pass, by an ordinary user, keeps its own venv if that user cannot read ours.
export ORDINARY_VENV := /var/cache/nsmagic-test/$(shell printf %s '$(CURDIR)' | cksum | cut -d' ' -f1)

.DELETE_ON_ERROR:
.PHONY: help run venv course docs test test-sanitize test-hosts test-docker test-elsewhere lint format bench clean machine
.DEFAULT_GOAL := help

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.run  ## build, install and open the course in JupyterLab (ARGS=--no-browser: a server)
	@exec $(PY) -I -m jupyterlab --ServerApp.root_dir='$(CURDIR)/notebooks' \
		--LabApp.default_url=/lab/tree/00-what-works-here.ipynb $(ALLOW_ROOT) $(ARGS)

venv: $(VENV)/.run  ## build and install into .venv, open nothing

test: $(VENV)/.test  ## run every test, as root too when started by root (ARGS="-k mount": some of them)
	@tools/run_tests.sh $(VENV) $(WHEELS) $(ARGS)

test-sanitize: $(VENV)/.test  ## run the runtime's tests with the address and undefined-behaviour sanitizers
	@tools/run_sanitized.sh $(VENV) $(ARGS)

test-hosts: $(VENV)/.nsmagic  ## run the tests that depend on the host in small machines of every kind (ARGS=--core: three)
	@tools/lane/hosts.py --python $(PY) --wheels $(WHEELS) $(ARGS)

test-docker: $(WHEELS)/.built  ## run the tests of hosts in Docker containers of each kind; as root (ARGS="default user")
	@tools/lane/docker.sh $(ARGS)

test-elsewhere: $(VENV)/.made  ## build the wheel as macOS and Windows do, and import it
	@tools/check_elsewhere.sh $(VENV)

course: $(VENV)/.run  ## make the course's notebooks from their sources (ARGS="--only 02": one)
	@$(PIP) install nbclient
	@$(PY) -I tools/course.py build $(ARGS)

docs: $(VENV)/.docs  ## build the site from executed notebooks and all pages: build/site/html (ARGS=--unexecuted: quick)
	@$(PY) -I tools/website.py build/site $(ARGS)

lint: $(VENV)/.lint  ## ruff (rules and format) and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy -p nsmagic
	$(VENV)/bin/mypy --strict tools/*.py tools/lane/*.py

format: $(VENV)/.lint  ## let ruff format the code and mend what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.run  ## measure containers beside plain Python and bubblewrap, the kernel beside ipykernel
	@$(PY) bench/bench.py $(ARGS)
	@$(PY) bench/kernels.py

clean:  ## remove everything that these commands made
	rm -rf $(VENV) build $(wildcard $(ORDINARY_VENV))
	rm -rf .ruff_cache .mypy_cache .pytest_cache .hypothesis

# What follows is made once, and again only when what it depends on has changed.

machine:
	@tools/check_machine.sh '$(PYTHON)'

$(VENV)/.made: | machine
	@echo "Making $(VENV) …"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

# One wheel serves every Python that the tests use: the extension keeps to the limited API.
$(WHEELS)/.built: $(SOURCES) $(VENV)/.made
	@echo "Building nsmagic …"
	@rm -rf $(WHEELS)
	@$(PIP) wheel --no-deps --wheel-dir $(WHEELS) .
	@touch $@

$(VENV)/.nsmagic: $(WHEELS)/.built
	@echo "Installing nsmagic and what it needs (a minute or two the first time) …"
	@$(PIP) install --force-reinstall --no-deps $(WHEELS)/*.whl
	@$(PIP) install "$$(ls $(WHEELS)/*.whl)"
	@touch $@

$(VENV)/.run: $(VENV)/.nsmagic
	@$(PIP) install "$$(ls $(WHEELS)/*.whl)[notebook]" matplotlib numpy pandas
	@touch $@

$(VENV)/.docs: $(VENV)/.run
	@$(PIP) install --group docs
	@touch $@

$(VENV)/.test: $(VENV)/.nsmagic
	@$(PIP) install --group test
	@touch $@

# mypy reads the sources, so the checks need what nsmagic imports but not nsmagic itself built.
$(VENV)/.lint: pyproject.toml $(VENV)/.made
	@echo "Installing the checkers …"
	@$(PIP) install --group lint jeepney msgspec nh3
	@touch $@
