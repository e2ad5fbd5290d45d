# Every target works on a fresh clone: it makes .venv when that is missing or older than the packaging files.
PY := .venv/bin/python
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

.PHONY: demo test test-all lint bench clean

demo: .venv/.installed
	.venv/bin/medgen demo

test: .venv/.installed
	$(PYTEST)

test-all: .venv/.installed
	$(PYTEST) -m ""

lint: .venv/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

bench: .venv/.installed
	$(PY) -m benchmarks
	$(PY) benchmarks/ssim.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt
	@set -e; ok='import sys, pip; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(PY) -c "$$ok" 2>/dev/null; then \
	  for found in python3.11 python3 python3.12 python3.13; do \
	    if $$found -c "$$ok" 2>/dev/null; then echo "making .venv with $$found"; $$found -m venv --clear .venv; break; fi; \
	  done; \
	fi; \
	$(PY) -c "$$ok" 2>/dev/null || { echo "medgen needs Python 3.11 or newer with venv and pip; none was found on the PATH" >&2; exit 1; }
	$(PY) -m pip install --quiet -c constraints.txt -e ".[test,notebooks]"
	@touch $@
