# The commands of the project. `make` without a target lists them.
ifeq ($(wildcard requirements.lock),)
$(error error: $(CURDIR) is not the project's folder: run make there, or make -C FOLDER)
endif

# The variables that make's command line may set: those of each command, and those of all. Without this list a misspelt
# BUDGET would be ignored, and so would one given to a command that has no budget.
OF_demo := JOBS
OF_table := TABLE BUDGET SEEDS COLUMNS NUMBERS BIRDS ORACLE JOBS FRESH TRAINER
OF_figures := TABLE
OF_export := CHECKPOINT
OF_play := BUDGET PORT OPEN
OF_bench := ONLY DEVICE QUICK
OF_docs := SERVE
COMMANDS := help setup demo table figures export play test coverage lint check bench docs lock clean
VARIABLES := $(sort $(foreach command,$(COMMANDS),$(OF_$(command))) PYTHON VENV)
# Only the command line counts, because a shell may export such a name for another purpose. COLUMNS, the width of the
# terminal, is often exported, and programs read it, so the knob is KNOB_COLUMNS.
EXPORTED := $(foreach name,$(VARIABLES),$(if $(findstring <environment>,<$(origin $(name))>),$(name)))
EXPORTED := $(strip $(filter-out COLUMNS,$(EXPORTED)))
$(if $(EXPORTED),$(warning $(EXPORTED) in the environment is ignored: put it after make, as in `make table BUDGET=smoke`))
$(foreach name,$(EXPORTED),$(eval $(name) :=))

PYTHON := python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(if $(filter /%,$(VENV)),,$(CURDIR)/)$(BIN):$(PATH)
export WANDB_MODE ?= offline
SETUP := VENV="$(VENV)" PYTHON="$(PYTHON)" ORIGIN="$(origin PYTHON)" sh setup.sh
COMPILE := uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-header

# The one of several names that is spelt most like a word, in capitals or not; nothing if none is.
nearest = $(shell python3 -c 'import difflib, sys; names = {name.lower(): name for name in sys.argv[2:]}; \
	print(*map(names.get, difflib.get_close_matches(sys.argv[1].lower(), names, 1, 0.7)))' '$(1)' $(2) 2>/dev/null)
GIVEN := $(strip $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name))))
# The command line may also set the other variables above, and those that make exports to programs.
PASSED := BIN SETUP COMPILE SHELL MAKEFLAGS STN_TRAINER STN_DATA_MIRROR WANDB_% OMP_% CUDA_% HYDRA_% PIP_% UV_%
UNKNOWN := $(firstword $(filter-out $(VARIABLES) $(PASSED),$(GIVEN)))
ifneq ($(UNKNOWN),)
MEANT := $(call nearest,$(UNKNOWN),$(VARIABLES))
$(error error: $(UNKNOWN) is no setting: $(if $(MEANT),did you mean $(MEANT)?,there are $(VARIABLES); put what is for the environment before make))
endif
NO_COMMAND := $(filter-out $(COMMANDS),$(MAKECMDGOALS))
ifneq ($(and $(NO_COMMAND),$(filter %Makefile,$(firstword $(MAKEFILE_LIST)))),)
NEAREST := $(call nearest,$(firstword $(NO_COMMAND)),$(COMMANDS))
$(error error: no command $(NO_COMMAND): $(if $(NEAREST),did you mean $(NEAREST)? )There are $(COMMANDS))
endif
TAKEN := $(foreach command,$(MAKECMDGOALS),$(OF_$(command)))
UNUSED := $(filter-out $(TAKEN) $(PASSED) PYTHON VENV,$(GIVEN))
ifneq ($(and $(UNUSED),$(filter-out help,$(MAKECMDGOALS))),)
$(error error: make $(MAKECMDGOALS) takes $(if $(TAKEN),only $(TAKEN),none of these words), not $(UNUSED))
endif
KNOB_COLUMNS := $(if $(filter COLUMNS,$(GIVEN)),$(COLUMNS))

# pip and uv need a writable cache; stn.environment provides one to the programs that run later.
ifeq ($(shell cache="$$XDG_CACHE_HOME"; test -n "$$cache" || { test -d "$$HOME" && cache="$$HOME/.cache"; } \
	&& mkdir -p "$$cache" 2>/dev/null && test -w "$$cache" && echo usable),)
export XDG_CACHE_HOME := $(CURDIR)/outputs/home/.cache
endif

# Whether a switch is on; FRESH=0 is off.
on = $(filter-out 0 no false,$(1))

.DEFAULT_GOAL := help
.PHONY: $(COMMANDS)

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '  %s\n' \
		'' \
		'make table takes these, as in: make table BUDGET=smoke; not before it, nor exported by the shell' \
		'  TABLE=1|2|3|4|5|6|7|8|9            which table' \
		'  BUDGET=smoke|quick|medium|paper    how long to train' \
		'  SEEDS=0,1,2                        which seeds; those of a record are kept' \
		'  COLUMNS=mnist_r,mnist_tc           columns of Table 1' \
		'  ORACLE=1                           also the CNN of Table 1 that gets the true pose' \
		'  NUMBERS=svhn|svhn_strips           data of Table 2' \
		'  BIRDS=cub|cub50                    data of Table 3' \
		'  JOBS=2                             cells side by side' \
		'  FRESH=1                            train again what has a record' \
		'  TRAINER=cpu|gpu|ddp                where to train' \
		'each command takes PYTHON=python3.12, the interpreter of .venv'

setup:  ## build .venv from requirements.lock
	@$(SETUP)

demo: setup  ## three minutes: CNN and ST-CNN on digits that need no download; JOBS=2
	@python -m stn.pipeline demo $(if $(JOBS),--jobs "$(JOBS)")

table: setup  ## fetch, distort, train what has no record, print paper | ours; TABLE=1 to 9
	@$(if $(filter 3 9,$(TABLE)),$(SETUP) trunks)
	@$(if $(filter 8,$(TABLE)),$(SETUP) export)
	@$(if $(TRAINER),STN_TRAINER="$(TRAINER)") python -m stn.pipeline table --table "$(or $(TABLE),1)" $(if $(BUDGET),--budget "$(BUDGET)") \
		$(if $(SEEDS),--seeds "$(SEEDS)") $(if $(NUMBERS),--numbers "$(NUMBERS)") $(if $(BIRDS),--birds "$(BIRDS)") \
		$(if $(KNOB_COLUMNS),--columns "$(KNOB_COLUMNS)") $(if $(call on,$(ORACLE)),--oracle) $(if $(JOBS),--jobs "$(JOBS)") $(if $(call on,$(FRESH)),--fresh)

figures: setup  ## draw the figures again from the records
	@python -m stn.figures --table $(or $(TABLE),1)

export: setup  ## CHECKPOINT=outputs/runs/.../last.ckpt: as ONNX, tested and timed
	@$(SETUP) export
	@python -m stn.export $(if $(CHECKPOINT),checkpoint="$(CHECKPOINT)")

play: setup  ## draw a digit in the browser, see what transformers make of it; BUDGET= PORT= OPEN=0
	@$(SETUP) export
	@python -m stn.play $(if $(BUDGET),--budget "$(BUDGET)") $(if $(PORT),--port "$(PORT)") $(if $(OPEN),$(if $(call on,$(OPEN)),,--no-browser))

test: setup  ## the test suite: no network; real MNIST if STN_DATA_MIRROR holds it
	@PYTHONUTF8=1 python -m pytest -n 2

coverage: setup  ## the test suite again, and which lines of src/stn it runs: 90 % at least
	@PYTHONUTF8=1 python -m pytest -n 2 --cov --cov-report=term

lint: setup  ## ruff and mypy
	@ruff check . && ruff format --check . && mypy

check: setup  ## do tables, README and docs say what the records say?
	@python -m stn.table --check

bench: setup  ## time everything beside its rivals; ONLY=distortion,training DEVICE=cpu QUICK=1
	@$(SETUP) bench
	@python -m benchmarks $(if $(ONLY),--only "$(ONLY)") $(if $(DEVICE),--device "$(DEVICE)") $(if $(call on,$(QUICK)),--quick)

docs: setup  ## the documentation as a site in outputs/site; SERVE=1 shows it while you write
	@$(SETUP) docs
	@NO_MKDOCS_2_WARNING=1 python -m mkdocs $(if $(call on,$(SERVE)),serve,build --strict)
	@$(if $(call on,$(SERVE)),,echo "open outputs/site/index.html")

lock:  ## resolve the versions in requirements*.lock again; rarely needed
	@$(COMPILE) --extra experiments --extra dev pyproject.toml -o requirements.lock
	@for extra in bench docs trunks export browser search; do \
		$(COMPILE) --extra experiments --extra dev --extra $$extra --constraints requirements.lock pyproject.toml | \
		awk 'NR == FNR {if (/^[^ ]/) base[$$1]; next} /^[^ ]/ {new = !($$1 in base)} new' requirements.lock - > requirements-$$extra.lock; \
	done

clean:  ## delete outputs/ (checkpoints, your own runs) and caches; data, records, tables stay
	rm -rf outputs .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage*
