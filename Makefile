# make demo         train on the generated sample and write a text (one backend)
# make test         the tests, in a fresh virtual environment for each backend
# make test-jax     the same on one backend; test-numpy runs in the environment of JAX
# make test-export  exports run in ONNX Runtime, OpenVINO and others
# make lint         ruff, codespell, mypy
# make types        mypy with each framework's own types, after lint
# make docs         the documentation, in docs/_build/html/index.html; a warning is an error
# make notebooks    the same, and writes the outputs of the notebooks into docs/notebooks
# make figure       the figure in README.md
# make weights      weights of a run in half precision, with a model card: RUN=DIRECTORY
# make dist         wheel and sdist, checked, and the wheel installed for each backend
# make test-oldest  the tests with the oldest versions that pyproject.toml allows
# make clean        removes what these made

PYTHON ?= python3.11
BACKEND ?= jax
BACKENDS ?= tensorflow torch jax
comma := ,
# Each program that the tests start compiles all that it imports, unless an earlier one has
# kept it in files. Where this variable is set, none does: 10 seconds for each program.
export PYTHONDONTWRITEBYTECODE :=
# Python compiles a module when it is first imported: most of a framework never is.
PIP = bin/python -m pip install --quiet --disable-pip-version-check --no-compile
PINNED = $(PIP) -c constraints.txt

.PHONY: demo test test-export test-numpy lint docs notebooks types figure weights dist dist/built test-oldest clean
.PHONY: $(foreach what,test test-export environment dist oldest,$(BACKENDS:%=$(what)-%))

demo: .venv-demo-$(BACKEND)/installed
	KERAS_BACKEND=$(BACKEND) .venv-demo-$(BACKEND)/bin/python examples/train_lm.py \
		--dataset sample --config examples/sample.json \
		--save_path demo/$(BACKEND) --resume
	KERAS_BACKEND=$(BACKEND) .venv-demo-$(BACKEND)/bin/python examples/sample_lm.py \
		--load_path demo/$(BACKEND) --num_words 30 --plot_gates
	@echo "Plots: demo/$(BACKEND)/training.png and demo/$(BACKEND)/gates.png"

.venv-demo-%/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-demo-$*
	.venv-demo-$*/$(PINNED) -e '.[$*,lm]'
	touch $@

test: $(BACKENDS:%=test-%) $(if $(filter jax,$(BACKENDS)),test-numpy)

# PyTorch's CPU build lacks Triton, whose interpreter runs the GPU kernels in the tests.
$(BACKENDS:%=environment-%): environment-%:
	$(PYTHON) -m venv --clear .venv-test-$*
	.venv-test-$*/$(PINNED) '.[$*,test$(if $(filter torch,$*),$(comma)numba)]' \
		$(if $(filter torch,$*),'triton; platform_system == "Linux"')

# FIRST: what must be done before the tests begin. .ci/run sets it.
$(BACKENDS:%=test-%): test-%: environment-% | $(FIRST)
	KERAS_BACKEND=$* .venv-test-$*/bin/python -m pytest $(PYTEST_ARGS)

# Keras's NumPy backend itself imports JAX: its tests run where JAX is, beside its tests.
test-numpy: environment-jax | $(FIRST)
	KERAS_BACKEND=numpy .venv-test-jax/bin/python -m pytest $(PYTEST_ARGS)

# What is exported, in the programs that run it: not part of `make test`.
test-export: $(BACKENDS:%=test-export-%)

$(BACKENDS:%=test-export-%): test-export-%:
	$(PYTHON) -m venv --clear .venv-export-$*
	.venv-export-$*/$(PINNED) '.[$*,test,export-$*]'
	KERAS_BACKEND=$* .venv-export-$*/bin/python -m pytest tests/export \
		tests/docs/test_snippets.py $(PYTEST_ARGS)

lint:
	$(PYTHON) -m venv --clear .venv-lint
	.venv-lint/$(PINNED) ruff codespell mypy numpy
	.venv-lint/bin/ruff check .
	.venv-lint/bin/ruff format --check .
	.venv-lint/bin/codespell
	.venv-lint/bin/mypy

docs:
	$(PYTHON) -m venv --clear .venv-docs
	.venv-docs/$(PINNED) '.[jax,docs]'
	KERAS_BACKEND=jax .venv-docs/bin/python -m sphinx -W --keep-going -q -E -b html docs docs/_build/html
	@echo "Documentation: docs/_build/html/index.html"

# The documentation executes them. What it executed before is deleted first.
notebooks:
	rm -rf docs/_build/jupyter_execute
	$(MAKE) docs
	cp docs/_build/jupyter_execute/notebooks/*.ipynb docs/notebooks

# The package and what callers write, checked against the types of a framework.
# One after another, because they share mypy's cache.
types: $(BACKENDS:%=environment-%) lint
	$(foreach backend,$(BACKENDS),.venv-lint/bin/mypy --python-executable .venv-test-$(backend)/bin/python &&) true

figure: .venv-demo-$(BACKEND)/installed
	KERAS_BACKEND=$(BACKEND) .venv-demo-$(BACKEND)/bin/python examples/draw_qrnn.py

# RUN: a directory that train_lm.py wrote. DATA: the options of its corpus, such as
# "--data_dir ptb"; without them it is Penn Treebank from the hub. OUT: what is made.
OUT ?= weights
ifneq ($(filter weights,$(MAKECMDGOALS)),)
ifndef RUN
$(error RUN must be given, a directory that train_lm.py wrote: results/ has no weights)
endif
endif

weights: .venv-demo-$(BACKEND)/installed
	KERAS_BACKEND=$(BACKEND) .venv-demo-$(BACKEND)/bin/python examples/release_weights.py \
		--load_path "$(RUN)" --save_path "$(OUT)" $(DATA)

dist: $(BACKENDS:%=dist-%)

dist/built:
	rm -rf dist
	$(PYTHON) -m venv --clear .venv-dist
	.venv-dist/$(PINNED) build twine
	.venv-dist/bin/python -m build --outdir dist
	.venv-dist/bin/python -m twine check --strict dist/*

# From another directory, in which the wheel alone can be imported.
$(BACKENDS:%=dist-%): dist-%: dist/built
	$(PYTHON) -m venv --clear .venv-dist-$*
	.venv-dist-$*/$(PINNED) "$$(echo dist/*.whl)[$*]"
	cd dist && KERAS_BACKEND=$* ../.venv-dist-$*/bin/python -c "import numpy, keras_qrnn; \
		print(keras_qrnn.__version__, keras_qrnn.QRNN(4)(numpy.ones((1, 3, 2))).shape)"

# The oldest versions that pyproject.toml allows: as in constraints-oldest.txt.
test-oldest: $(BACKENDS:%=oldest-%)

$(BACKENDS:%=oldest-%): oldest-%:
	$(PYTHON) -m venv --clear .venv-oldest-$*
	.venv-oldest-$*/$(PIP) -c constraints-oldest.txt \
		'.[$*,test$(if $(filter torch,$*),$(comma)numba)]'
	KERAS_BACKEND=$* .venv-oldest-$*/bin/python -m pytest $(PYTEST_ARGS)

clean:
	rm -rf .venv-* demo build dist docs/_build
