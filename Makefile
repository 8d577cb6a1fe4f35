# `make setup` once, `make check` before every commit.
PYTHON ?= .venv/bin/python
SOURCES := $(wildcard rayssl experiments benchmarks tests)

.PHONY: setup check lint types test test-fast test-long format docker-test

setup:
	python3 -m venv .venv
	.venv/bin/python -m pip install -q -e '.[test]'

check: lint types test

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy $(SOURCES)

test:
	$(PYTHON) -m pytest -q -n 2 --dist loadfile

test-fast:
	$(PYTHON) -m pytest -q -n 2 --dist loadfile -m 'not slow'

# Kills, a node that joins, PBT: minutes each, so that they are not part of the README's line.
test-long:
	RAYSSL_LONG_TESTS=1 $(PYTHON) -m pytest -q -m long

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

# Needs Docker, or podman and podman-compose; builds the image, so it is not part of `make check`.
docker-test:
	$(PYTHON) docker/test.py --log docker/test.log
