# make demo: five models from text to a served answer.   make test: format, lint, types and all tests.
# Everything lives in .venv at the root of the checkout; nothing is installed elsewhere.

PYTHON ?= python3
export TF_CPP_MIN_LOG_LEVEL ?= 3
RUN := .venv/bin/python

.PHONY: demo test parity benchmarks soak beam fixtures lint lock clean
.DEFAULT_GOAL := test

demo: .venv/installed
	$(RUN) demo.py $(if $(KEEP),--keep)

# One thread of TensorFlow a worker: workers of two threads each wait for one another on two cores, and a third worker made
# the run longer.
test: export TF_NUM_INTRAOP_THREADS = 1
test: lint
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	KERAS_BACKEND=jax $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/keras_seq $(addprefix --ignore tests/keras_seq/,test_text.py test_trie.py test_packing.py test_checkpoint_files.py)

lint: .venv/installed
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

# Live against transformers and torch, with other weights and sizes at every run; SEED=... repeats one.
parity: .venv/parity
	KERAS_SEQ_PARITY_SEED=$(SEED) $(RUN) -m pytest tests/parity
	KERAS_SEQ_PARITY_SEED=$(SEED) KERAS_BACKEND=jax $(RUN) -m pytest tests/parity

# Speed and memory against other programs, as ratios, on a machine that does nothing else; what reads real data only where
# KERAS_SEQ_DATA names its folder.
benchmarks: .venv/benchmarks
	$(RUN) -m benchmarks.training
	$(RUN) -m benchmarks.training --best
	$(RUN) -m benchmarks.generation
	$(RUN) -m benchmarks.generation --best
	$(RUN) -m benchmarks.serving
	$(if $(KERAS_SEQ_DATA),$(RUN) -m benchmarks.tokenizers)
	$(if $(KERAS_SEQ_DATA),$(RUN) -m benchmarks.pipelines)
	$(RUN) -m benchmarks.plot

# The embedded server for some five minutes: versions dropped in under load, ever new words, swaps of large weights.
soak: .venv/installed
	$(RUN) -m benchmarks.soak --seconds $(or $(SECONDS),120) --words $(or $(WORDS),200000)

# Corpus preparation on Apache Beam's local runner, in an environment of its own: it holds protobuf below 7.
beam: .venv-beam/installed
	.venv-beam/bin/python -m pytest --noconftest -p no:cacheprovider -W default tests/beam

.venv-beam/installed: setup.cfg
	$(PYTHON) -m venv .venv-beam
	.venv-beam/bin/python -m pip install --quiet --disable-pip-version-check 'apache-beam>=2.60,<3' pytest
	touch .venv-beam/installed

.venv/benchmarks: .venv/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[benchmarks]'
	touch .venv/benchmarks

# What `make test` holds the checkpoints against, written anew by transformers and torch.
fixtures: .venv/parity
	$(RUN) tests/parity/write_fixtures.py

.venv/parity: .venv/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[parity]'
	touch .venv/parity

# Wheels for TensorFlow 2.21 exist for these Pythons only. PYTHON=... names another interpreter.
.venv/installed: setup.cfg pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "error: keras_seq needs Python 3.11 to 3.13, got %d.%d from PYTHON=$(PYTHON)." % v)'
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch .venv/installed

# Anew from the ranges in setup.cfg.
lock:
	rm -rf .venv-lock build
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check '.[test]'
	.venv-lock/bin/python -m pip freeze --exclude keras-seq > requirements.lock
	rm -rf .venv-lock build

clean:
	rm -rf .venv .venv-beam .demo build *.egg-info
