# make demo    train on the embedded corpus and write a sentence (one backend)
# make test    the tests, in a fresh virtual environment for each backend
# make lint    ruff, as CI runs it
# make figure  the figure in README.md

PYTHON ?= python3.11
BACKEND ?= jax
BACKENDS ?= tensorflow jax torch
PIP = bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# A small model: under two minutes on two cores.
DEMO = --dataset sample --save_path demo --resume --epoch 12 --batch_size 20 \
	--seq_len 35 --emb_dim 64 --qrnn_size 128 --zoneout 0 --dropout 0.1 \
	--learning_rate 1 --learning_rate_decay 0.7

.PHONY: demo test lint figure clean $(BACKENDS:%=test-%)

demo: .venv-demo-$(BACKEND)/installed
	KERAS_BACKEND=$(BACKEND) .venv-demo-$(BACKEND)/bin/python examples/train_lm.py $(DEMO)
	KERAS_BACKEND=$(BACKEND) .venv-demo-$(BACKEND)/bin/python examples/sample_lm.py \
		--load_path demo --num_words 30 --plot_gates
	@echo "Plots: demo/training.png and demo/gates.png"

.venv-demo-%/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-demo-$*
	.venv-demo-$*/$(PIP) -e '.[$*,lm]'
	touch $@

test: $(BACKENDS:%=test-%)

$(BACKENDS:%=test-%): test-%:
	$(PYTHON) -m venv --clear .venv-test-$*
	.venv-test-$*/$(PIP) '.[$*,test]'
	KERAS_BACKEND=$* .venv-test-$*/bin/python -m pytest

lint:
	$(PYTHON) -m venv --clear .venv-lint
	.venv-lint/$(PIP) ruff
	.venv-lint/bin/ruff check .
	.venv-lint/bin/ruff format --check .

figure: .venv-demo-$(BACKEND)/installed
	KERAS_BACKEND=$(BACKEND) .venv-demo-$(BACKEND)/bin/python examples/draw_qrnn.py

clean:
	rm -rf .venv-* demo build dist
