# Everything starts here: `make report` and `make test` set up what they need, then do it.
# Needs Python 3.11 or newer, git and GNU make 3.81 or newer (macOS carries 3.81).

# The profile that `make report` runs (`.venv/bin/qlora profiles` lists them).
PROFILE ?= demo
# The Python to build .venv with; empty: the first on the PATH that fits.
PYTHON ?=
# Given to each `pip install`, e.g. PIP_ARGS="--find-links FOLDER".
PIP_ARGS ?=
# Where to take another build of torch from, e.g. TORCH_ARGS="--index-url ADDRESS" (docs/INSTALL.md).
TORCH_ARGS ?=
# Given to pytest, e.g. TEST_ARGS="-k lora -x".
TEST_ARGS ?=
# How many hostile inputs `make fuzz` tries.
INPUTS ?= 10000

# From 25.1 on pip resumes a broken download; from 25.3 on it pins the build tools too.
PIP_VERSION = 26.3
PIP = .venv/bin/python -m pip --disable-pip-version-check --no-input
AGAIN = { echo "error: set-up stopped; mend the cause above, then run it again: what was downloaded is kept" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help setup report smoke test fuzz faults constraints clean FORCE
.SUFFIXES:

help:
	@echo "make report [PROFILE=demo]  set up, run the profile, write report/PROFILE.pdf and the HTML"
	@echo "make test [TEST_ARGS=...]   set up, then all tests"
	@echo "make fuzz [INPUTS=10000]    hostile profiles, records, data, models, archives and arguments; some minutes"
	@echo "make faults                kills, full disks, lost networks and the rest, each really caused; some minutes"
	@echo "make smoke                  set up, then the smallest profile end to end (no download)"
	@echo "make setup                  build .venv alone; PYTHON=, TORCH_ARGS=, PIP_ARGS=: see docs/INSTALL.md"
	@echo "make constraints            renew the exact versions in constraints.txt"
	@echo "make clean                  remove pages and caches; keeps .venv, results/ and all that git tracks"

report: setup
	.venv/bin/qlora report --profile $(PROFILE)

smoke: setup
	.venv/bin/qlora report --profile smoke

test: setup
	.venv/bin/python -m pytest $(TEST_ARGS)

# New inputs each time; what fails is printed with the line that brings it back.
fuzz: setup
	QLORA_FUZZ=$(INPUTS) .venv/bin/python -m pytest $(TEST_ARGS) tests/fuzz

# Each fault that the README promises to survive; its table there is made of what this finds.
faults: setup
	QLORA_FAULTS=all .venv/bin/python -m pytest $(TEST_ARGS) -m promise tests
	.venv/bin/python tests/promises.py

setup: .venv/.ready

# Sets $py to the first candidate that really starts (a version manager's shim may exist and yet
# fail), fits, and can make virtual environments. A Python newer than every pinned wheel is
# the last choice, so that it is not taken while a tried one is there.
CHOOSE_PYTHON = \
  probe='import sys, importlib.util as u; v = sys.version_info[:2]; print("old" if v < (3, 11) else "bare" if not u.find_spec("ensurepip") else "newer" if v > (3, 14) else "fits")'; \
  py=; newer=; bare=; \
  if [ -n '$(PYTHON)' ]; then set -- '$(PYTHON)'; \
  else set -- python3 python3.14 python3.13 python3.12 python3.11; fi; \
  for candidate; do \
    case "$$("$$candidate" -c "$$probe" 2>/dev/null)" in \
      fits) py=$$candidate; break;; \
      newer) newer=$${newer:-$$candidate};; \
      bare) bare=$${bare:-$$candidate};; \
    esac; \
  done; \
  py=$${py:-$$newer}; \
  if [ -z "$$py" ] && [ -n "$$bare" ]; then \
    echo "error: $$bare cannot make virtual environments (it lacks ensurepip); on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; \
  elif [ -z "$$py" ]; then \
    echo "error: no Python 3.11 or newer that starts; tried: $$*. Install one, or name it: make setup PYTHON=/path/to/python3" >&2; exit 2; \
  fi

# .venv/.ready is written last and holds the checkout's own path: a set-up that was interrupted,
# a checkout that was moved or copied, and a Python that is gone are none of them "ready".
READY := $(shell .venv/bin/python -c 'import os; print(open(".venv/.ready").read().strip() == os.getcwd())' 2>/dev/null)
ifneq ($(READY),True)
.venv/.ready: FORCE
endif

# .venv.unfinished says that packages may be half written, so the next set-up starts from an empty
# .venv. It lies outside, since removing .venv can be interrupted too. A .venv that somebody made by
# hand carries neither mark and is filled in place; so is a finished one when the pins change.
.venv/.ready: pyproject.toml constraints.txt
	@set -e; \
	if [ -e .venv.unfinished ] || ! .venv/bin/python -c 'import pip' 2>/dev/null \
	    || { [ -e .venv/.ready ] && [ "$$(cat .venv/.ready)" != "$$(pwd -P)" ]; }; then \
	  $(CHOOSE_PYTHON); \
	  echo "set-up 1/3: .venv from $$py ($$("$$py" --version))"; \
	  : > .venv.unfinished; rm -rf .venv; "$$py" -m venv .venv; \
	elif [ -e .venv/.ready ]; then mv .venv/.ready .venv.unfinished; fi
	@echo "set-up 2/3: pip $(PIP_VERSION)"
	@$(PIP) install -qq $(PIP_ARGS) 'pip==$(PIP_VERSION)' || $(AGAIN)
	@echo "set-up 3/3: the packages of constraints.txt (some minutes; torch is the largest)"
	@$(if $(strip $(TORCH_ARGS)),$(PIP) install -qq --no-deps $(PIP_ARGS) $(TORCH_ARGS) -c constraints.txt torch || $(AGAIN))
	@$(PIP) install -qq $(PIP_ARGS) --build-constraint constraints.txt -c constraints.txt -e '.[test]' || $(AGAIN)
	@rm -f .venv.unfinished
	@pwd -P > .venv/.ready
	@echo "set-up done; the command is .venv/bin/qlora (or: source .venv/bin/activate)"

# The newest versions that fit together, from an empty environment. The head of constraints.txt, with
# the pins kept by hand, stays and holds; torch's CUDA packages are left to torch, which pins them.
constraints:
	@set -e; $(CHOOSE_PYTHON); \
	work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	echo "constraints: resolving in an empty environment (some minutes)"; \
	"$$py" -m venv "$$work/venv"; pip="$$work/venv/bin/python -m pip --disable-pip-version-check"; \
	$$pip install -qq $(PIP_ARGS) 'pip==$(PIP_VERSION)'; \
	sed '/^# Frozen/q' constraints.txt > "$$work/head"; \
	$(if $(strip $(TORCH_ARGS)),$$pip install -qq --no-deps $(PIP_ARGS) $(TORCH_ARGS) -c "$$work/head" torch;) \
	$$pip install -qq $(PIP_ARGS) -c "$$work/head" -e '.[test]'; \
	$$pip freeze --all --exclude-editable --exclude pip > "$$work/frozen"; \
	sed 's/+.*//' "$$work/frozen" | grep -Ev '^(nvidia|cuda|triton)' \
	  | awk -F== 'NR == FNR { kept[$$1]; next } !($$1 in kept)' "$$work/head" - > "$$work/pins"; \
	cat "$$work/head" "$$work/pins" > constraints.txt
	@echo "constraints: done; now run: make test"

# Only what git ignores, only in these places.
clean:
	git clean -fdXq -- build dist qlora_lib.egg-info .pytest_cache .hypothesis qlora_lib tests notebooks figures report
