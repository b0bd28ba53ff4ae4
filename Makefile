# The front door. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export WANDB_MODE ?= offline
COMPILE := uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-header

# What may stand on make's command line. A misspelt BUDGET would else be ignored, and another table trained.
VARIABLES := TABLE BUDGET SEEDS COLUMNS NUMBERS BIRDS ORACLE JOBS FRESH TRAINER PYTHON VENV CHECKPOINT ONLY DEVICE QUICK
# So may the other names that are set above, and what programs read from the environment, where make puts it.
PASSED := BIN COMPILE SHELL MAKEFLAGS STN_TRAINER STN_DATA_MIRROR WANDB_% OMP_% CUDA_% HYDRA_% PIP_% UV_%
GIVEN := $(strip $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name))))
UNKNOWN := $(filter-out $(VARIABLES) $(PASSED),$(GIVEN))
ifneq ($(UNKNOWN),)
$(error error: no variable $(UNKNOWN): there are $(VARIABLES); put what is for the environment before make)
endif
# Some shells export COLUMNS, the width of the terminal: that is no knob.
KNOB_COLUMNS := $(if $(filter COLUMNS,$(GIVEN)),$(COLUMNS))

# Whether a switch is on: FRESH=0 throws nothing away.
on = $(filter-out 0 no false,$(1))

.DEFAULT_GOAL := help
.PHONY: help setup demo table figures export test lint check bench lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  table takes TABLE=1|2|3|4|5|6|7|8 BUDGET=smoke|quick|medium|paper SEEDS=0,1,2 JOBS=2 FRESH=1 COLUMNS=mnist_r,mnist_tc ORACLE=1 NUMBERS=svhn|svhn_strips BIRDS=cub|cub50 TRAINER=cpu|gpu|ddp; PYTHON=python3.12 chooses the interpreter"

setup: $(VENV)/.done  ## build .venv from requirements.lock

$(VENV)/.done: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes requirements.lock
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.bench: requirements-bench.lock $(VENV)/.done
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --require-hashes -r requirements-bench.lock
	@touch $@

$(VENV)/.export: requirements-export.lock $(VENV)/.done
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --require-hashes -r requirements-export.lock
	@touch $@

demo: setup  ## three minutes: CNN and ST-CNN on digits that need no download, table and pictures
	@python -m stn.pipeline demo $(if $(JOBS),--jobs "$(JOBS)")

table: setup $(if $(filter 8,$(TABLE)),$(VENV)/.export)  ## TABLE=1 (or 2, 3, 4, 5, 6, 7, 8): fetch, distort, train what is missing, print paper | ours
	@$(if $(TRAINER),STN_TRAINER="$(TRAINER)") python -m stn.pipeline table --table "$(or $(TABLE),1)" $(if $(BUDGET),--budget "$(BUDGET)") \
		$(if $(SEEDS),--seeds "$(SEEDS)") $(if $(NUMBERS),--numbers "$(NUMBERS)") $(if $(BIRDS),--birds "$(BIRDS)") \
		$(if $(KNOB_COLUMNS),--columns "$(KNOB_COLUMNS)") $(if $(call on,$(ORACLE)),--oracle) $(if $(JOBS),--jobs "$(JOBS)") $(if $(call on,$(FRESH)),--fresh)

figures: setup  ## draw the figures again from the records
	@python -m stn.figures --table $(or $(TABLE),1)

export: setup $(VENV)/.export  ## CHECKPOINT=outputs/runs/.../last.ckpt: as ONNX, float32 and int8, tested and timed
	@python -m stn.export $(if $(CHECKPOINT),checkpoint="$(CHECKPOINT)")

test: setup  ## the test suite: no network; real MNIST if STN_DATA_MIRROR holds it
	@python -m pytest -n 2

lint: setup  ## ruff
	@ruff check . && ruff format --check .

check: setup  ## do tables and README say what the records say?
	@python -m stn.table --check

bench: setup $(VENV)/.bench  ## time everything beside its rivals: a table, reports/bench; ONLY=distortion,training DEVICE=cpu QUICK=1
	@python -m benchmarks $(if $(ONLY),--only "$(ONLY)") $(if $(DEVICE),--device "$(DEVICE)") $(if $(call on,$(QUICK)),--quick)

lock:  # not for every day: resolve requirements.lock anew; those of bench and export are what these add to it
	@$(COMPILE) --extra dev pyproject.toml -o requirements.lock
	@for extra in bench export; do \
		$(COMPILE) --extra dev --extra $$extra --constraints requirements.lock pyproject.toml | \
		awk 'NR == FNR {if (/^[^ ]/) base[$$1]; next} /^[^ ]/ {new = !($$1 in base)} new' requirements.lock - > requirements-$$extra.lock; \
	done

clean:  ## remove scratch; data, records and tables stay
	rm -rf outputs .pytest_cache .ruff_cache
