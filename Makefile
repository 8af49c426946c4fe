# `make run` and `make test` are all a newcomer needs; each makes .venv when it is missing.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
OUT ?= runs/figure1
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: run test slow soak check bench clean

# OpenMP's threads spin while they wait, which makes busy processes on one machine wait for each
# other; the tests' tensors are small, and one thread is enough for them. Benchmarks choose for
# themselves.
test slow soak: export OMP_NUM_THREADS := 1
test slow soak: export OMP_WAIT_POLICY := passive

run: $(VENV)/ready
	$(BIN)/batchramp reproduce figure1 --scale quick --part main --seeds 3 --jobs $(JOBS) --out $(OUT)

test: $(VENV)/ready
	$(BIN)/pytest -n $(JOBS)

# Hosts, Ray and TensorBoard are for their tests alone, which are skipped where they cannot be had.
HOSTS := lightning transformers accelerate torchdata datasets
slow: $(VENV)/ready
	-$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(HOSTS)
	-$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt ray tensorboard
	$(BIN)/pytest -m slow

# 3,000 faults, 1,000,000 fuzzed inputs, each promise without what keeps it, and the suite on the
# oldest and the newest torch, which may bring gigabytes: half an hour.
soak: $(VENV)/ready
	$(BIN)/pytest -m soak tests/faults
	.ci/other_torch.sh 2.7.0
	.ci/other_torch.sh newest

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest tests/test_architecture.py batchramp

# Of other people's packages, for their comparisons alone; what cannot be had is named in the results.
PEERS := qhoptim pytorch-optimizer bs-scheduler torchdata
bench: $(VENV)/ready
	for peer in $(PEERS); do \
		$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $$peer || true; \
	done
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(if $(ANYWAY),--anyway)

# torch comes first and pinned: without the pin, pip takes gigabytes of CUDA packages.
$(VENV)/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis
