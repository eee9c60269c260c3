# make demo    train on the embedded corpus and write a sentence (one backend)
# make test    the tests, in a fresh virtual environment for each backend
# make lint    ruff, as CI runs it
# make figure  the figure in README.md

PYTHON ?= python3.11
BACKEND ?= jax
BACKENDS ?= tensorflow jax torch
comma := ,
PIP = bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint figure clean $(BACKENDS:%=test-%)

demo: .venv-demo-$(BACKEND)/installed
	KERAS_BACKEND=$(BACKEND) .venv-demo-$(BACKEND)/bin/python examples/train_lm.py \
		--dataset sample --config examples/sample.json \
		--save_path demo/$(BACKEND) --resume
	KERAS_BACKEND=$(BACKEND) .venv-demo-$(BACKEND)/bin/python examples/sample_lm.py \
		--load_path demo/$(BACKEND) --num_words 30 --plot_gates
	@echo "Plots: demo/$(BACKEND)/training.png and demo/$(BACKEND)/gates.png"

.venv-demo-%/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-demo-$*
	.venv-demo-$*/$(PIP) -e '.[$*,lm]'
	touch $@

test: $(BACKENDS:%=test-%)

# Keras's NumPy backend itself needs JAX: its tests run where JAX is. PyTorch's CPU
# build lacks Triton, whose interpreter runs the GPU kernels in the tests.
$(BACKENDS:%=test-%): test-%:
	$(PYTHON) -m venv --clear .venv-test-$*
	.venv-test-$*/$(PIP) '.[$*,test$(if $(filter torch,$*),$(comma)numba)]' \
		$(if $(filter torch,$*),'triton; platform_system == "Linux"')
	KERAS_BACKEND=$* .venv-test-$*/bin/python -m pytest $(PYTEST_ARGS)
	$(if $(filter jax,$*),KERAS_BACKEND=numpy .venv-test-jax/bin/python -m pytest $(PYTEST_ARGS))

lint:
	$(PYTHON) -m venv --clear .venv-lint
	.venv-lint/$(PIP) ruff
	.venv-lint/bin/ruff check .
	.venv-lint/bin/ruff format --check .

figure: .venv-demo-$(BACKEND)/installed
	KERAS_BACKEND=$(BACKEND) .venv-demo-$(BACKEND)/bin/python examples/draw_qrnn.py

clean:
	rm -rf .venv-* demo build dist
