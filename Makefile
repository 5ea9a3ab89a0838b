# Ganymede from a bare `python3` and `make`: every target sets up $(VENV) by itself, nothing needs activating.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PYTEST_ARGS ?=

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check install -qq -c constraints.txt
PYTEST := $(RUN) -m pytest -n $(JOBS) --dist worksteal
READY := $(VENV)/.ready-$(VERSION)
ORACLE := $(VENV)/.oracle-$(VERSION)
PEERS := $(VENV)/.peers-$(VERSION)

# Published models, on meshes that could train them.
GPT3 := --mesh=data:4,fsdp:32,tensor:8 --chip=h100 --config.train.batch_size=1536 --config.train.accumulate=4 --config.loss.chunk=4096
BLOOM := --mesh=data:2,fsdp:64,tensor:4 --chip=a100 --config.train.batch_size=2048 --config.train.accumulate=4 --config.loss.chunk=4096
LLAMA := --mesh=data:8,fsdp:64,tensor:4 --chip=v5p --config.train.batch_size=2048 --config.loss.chunk=4096

# On Linux, training spends a tenth or more of its time in page faults unless malloc asks for huge pages.
ifeq ($(shell uname -s),Linux)
quickstart bench: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
endif

.PHONY: help quickstart test lint types unit oracle parity invariance goodness kills sharding plan format bench clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(READY) ## tokenizer, training, evaluation, completions, pictures and a replay in five minutes
	$(call launch,train --config=configs/quickstart.py --workdir=runs/quickstart)
	$(call launch,eval --from=runs/quickstart)
	$(call launch,decode --from=runs/quickstart --workdir=runs/quickstart/decode)
	$(call launch,inspect --from=runs/quickstart)
	$(call launch,replay --workdir=runs/quickstart/decode)
	@printf '%s\n' '' 'Everything is in runs/quickstart:' \
	  '  config.json  metrics.jsonl  evaluation.json  samples.md  figures/  tensorboard/  checkpoints/  tokenizer/' \
	  '  decode/completions.jsonl and decode/manifest.json: the run that was just replayed' \
	  '' 'Three commands to try next:' \
	  '  $(RUN) launch.py decode --from=runs/quickstart --prompt="The with statement"' \
	  '  $(RUN) launch.py decode --from=runs/quickstart --prompt="def " --temperature=0.5 --top_k=20 --n=3' \
	  '  $(RUN) launch.py train --config=configs/quickstart.py --workdir=runs/mine --config.data.train=my.txt'

test: lint types unit ## lint, types, and every test that needs no oracle

lint: $(READY) ## ruff: rules and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(READY) ## mypy
	$(RUN) -m mypy

unit: $(READY) ## the tests; PYTEST_ARGS="-k name" narrows them
	$(PYTEST) -m "not oracle" $(PYTEST_ARGS)

oracle: $(ORACLE) ## the tests against torch and transformers, which it installs
	$(PYTEST) -m oracle $(PYTEST_ARGS)

format: $(READY) ## let ruff mend and format the code
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

parity: $(ORACLE) ## the table of differences from torch and transformers, for docs/results.md
	$(RUN) benchmarks/parity.py

invariance: $(READY) ## what may change around a request without changing its completion, for docs/results.md
	$(RUN) benchmarks/invariance.py

goodness: $(READY) ## whether draws are samples of what settings define, for docs/results.md; some minutes
	$(RUN) benchmarks/goodness.py

kills: $(READY) ## trainings killed at random moments, against trainings left in peace, for docs/results.md; some minutes
	$(RUN) benchmarks/kills.py

sharding: $(READY) ## whether a mesh changes what is computed, for docs/results.md; some minutes
	$(RUN) benchmarks/sharding.py

plan: $(READY) ## three published models on meshes that are not here, and plans beside what XLA compiles; for docs/results.md
	$(call launch,plan --config=configs/preset.py:gpt3-175b $(GPT3))
	$(call launch,plan --config=configs/preset.py:bloom-176b $(BLOOM))
	$(call launch,plan --config=configs/preset.py:llama-65b $(LLAMA))
	$(RUN) benchmarks/plan.py

bench: $(PEERS) ## training and decoding, side by side with their peers; for docs/results.md
	$(RUN) benchmarks/train_step.py
	$(RUN) benchmarks/decode.py
	$(RUN) benchmarks/decode.py --shape=gpt2
	$(RUN) benchmarks/decode_cost.py

clean: ## remove the environment and every cache; runs/ stays
	@if [ -e $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi
	rm -rf .cache build dist ganymede.egg-info

# Says which command it runs, so that a reader learns the verbs.
define launch
	@printf '\n$$ %s\n' '$(RUN) launch.py $(1)'
	@$(RUN) launch.py $(1)
endef

# An environment made by another Python is made anew; one that was interrupted is completed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Ganymede needs Python 3.11 or newer, and $(PYTHON) is" \
	         "$$($(PYTHON) -V 2>/dev/null || echo no working command);" \
	         "name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@if [ -e $(VENV)/pyvenv.cfg ] && [ ! -e $(VENV)/lib/python$(VERSION) ]; then rm -rf $(VENV); fi
	@echo "Setting up $(VENV) with Python $(VERSION): about 800 MB, a minute or two on a good line"
	@start=$$(date +%s); $(PYTHON) -m venv $(VENV) && echo '*' > $(VENV)/.gitignore \
	  && $(PIP) -e '.[test]' && touch $@ \
	  && echo "Ready after $$(($$(date +%s) - start)) seconds"

$(ORACLE): $(READY)
	@echo "Adding torch and transformers to $(VENV): another 1.5 GB"
	@start=$$(date +%s); $(PIP) -e '.[test,oracle]' && touch $@ \
	  && echo "Ready after $$(($$(date +%s) - start)) seconds"

$(PEERS): $(ORACLE)
	@echo "Adding CTranslate2 to $(VENV)"
	@$(PIP) -e '.[test,peers]' && touch $@
