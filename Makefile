# make demo        make the environment and run the experiment of config.yaml
# make test        make the same environment and pass all tests
# make quick       the tests without the slow ones
# make processors  the tests that compare bits and figures, with the kernels of other processors
# make golden      the figures of a small experiment against those on record; accept=yes puts new ones on record
# make check       formatting, lint and types, as CI does

PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
ENV := .venv
RUN := $(CURDIR)/$(ENV)/bin
export PATH := $(RUN):$(PATH)

.PHONY: demo test quick processors golden check

demo: $(ENV)/installed
	@echo "A small model is trained, pruned by five recipes at two sparsities and measured, in two to four minutes."
	@snakemake --profile local --cores $(CORES)
	@gramprune summary
	@printf '%s\n' "" "Three things to try, with .venv/bin in front of your PATH (source .venv/bin/activate):" \
	  "  the report                   open results/report.html in a browser" \
	  "  a sparsity of your own       add 0.6 to the first line of runs in config.yaml, then: snakemake --cores $(CORES)" \
	  "  a model of your own          gramprune new FOLDER-OR-HUB-ID --text YOUR.txt > my.yaml, then: gramprune check my.yaml"

# Two processes: most tests wait for Snakemake to start. Each makes its own little world, so more do not pay.
test: $(ENV)/installed
	pytest -n 2 --dist loadfile --no-loadscope-reorder

quick: $(ENV)/installed
	pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

# torch, oneDNN and MKL choose their kernels by these variables. Each kernel and each number of threads once; this
# processor's own kernels, with one thread, are in `make test`. Waiting threads must not take the other process's core.
with = ATEN_CPU_CAPABILITY=$(1) ONEDNN_MAX_CPU_ISA=$(2) MKL_ENABLE_INSTRUCTIONS=$(3) GRAMPRUNE_TEST_THREADS=$(4) \
	OMP_WAIT_POLICY=passive pytest -q -n 2 --dist loadfile --no-loadscope-reorder

BITS = $$(grep -l "mark\.bits" tests/test_*.py)

processors: $(ENV)/installed
	$(call with,default,SSE41,SSE4_2,1) -m bits $(BITS)
	$(call with,avx2,AVX2,AVX2,2) -m bits $(BITS)
	$(call with,avx2,AVX2,AVX2,2) tests/test_workflow.py tests/test_demo.py -k "bit_for_bit or same_seed"

golden: $(ENV)/installed
	python tests/golden/measure.py $(if $(accept),--accept)

check: $(ENV)/installed
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	snakemake --lint
	mypy

# Exact versions; torch is the build that pip finds for this machine (CUDA on Linux, unless a CPU build is offered).
$(ENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("gramprune needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(ENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
