# Needs Python 3.11 (with its venv module) and make; everything else goes into .venv.
# Set-up happens once, at the versions of constraints.txt, and again only when that file or
# pyproject.toml changes.

PYTHON ?= python3
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
TRAIN_READY := $(VENV)/.ready-train
DEV_READY := $(VENV)/.ready-dev
BENCH_READY := $(VENV)/.ready-bench
HALF_DONE := $(VENV)/.half-done

# pip reads this one, in the build of the package too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help train test check wheel matrix soak bench

help:
	@echo "make train   set up, then the quick main job: spelling to pronunciation"
	@echo "make test    the whole test suite"
	@echo "make check   ruff, formatting, strict types, imports one way"
	@echo "make wheel   sdist and wheel in dist/, the wheel tried in an environment of its own"
	@echo "make matrix  tests on other Pythons and torches, into docs/support.md; 5 GB of disk for a while"
	@echo "make soak    the long forms of the tests"
	@echo "make bench   our speed beside that of others, 14 minutes; FULL=1: all of it, about an hour"

train: $(TRAIN_READY)
	$(BIN)/throughtime train pronounce --preset quick

test: $(DEV_READY)
	$(BIN)/pytest -n $(JOBS) --durations 10 --durations-min 2

check: $(DEV_READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -q tests/house/test_arrows.py

wheel: $(DEV_READY)
	$(BIN)/python packaging/build_wheel.py

# PAIRS="3.11-2.9.1 3.13-2.15.0": these alone, and the others' rows stay as they are.
matrix: $(DEV_READY)
	$(BIN)/python packaging/try_versions.py $(PAIRS)

soak: $(DEV_READY)
	$(BIN)/pytest -m soak --timeout 5400

# RESUME=benchmarks/speed/results/FILE.json goes on with a run that was cut off.
bench: $(BENCH_READY)
	$(BIN)/python -m benchmarks.overhead.run
	$(BIN)/python -m benchmarks.overhead.grid
	$(BIN)/python -m benchmarks.busy.run --burners 1
	$(BIN)/python -m benchmarks.speed.run $(if $(FULL),--full) $(if $(RESUME),--resume $(RESUME))

$(TRAIN_READY): pyproject.toml constraints.txt
	$(call set_up,train)

$(DEV_READY): $(TRAIN_READY)
	$(call set_up,train$(,)lightning$(,)data$(,)export$(,)plots$(,)dev)
	$(call tools)

$(BENCH_READY): $(DEV_READY)
	$(call set_up,train$(,)lightning$(,)data$(,)export$(,)plots$(,)dev$(,)bench)

, := ,

# Tests open the report's page in Chromium, run code for AArch64 and RISC-V under qemu, and WebAssembly in
# node; without these they are skipped and say so. Each is a program and its packages. What the tests of
# Cortex-M need is left out, as it takes 900 MB: gcc-arm-none-eabi, libnewlib-arm-none-eabi, qemu-system-arm.
TOOLS := chromium:chromium qemu-aarch64:qemu-user node:nodejs \
         aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu,libc6-dev-arm64-cross \
         riscv64-linux-gnu-gcc:gcc-riscv64-linux-gnu,libc6-dev-riscv64-cross

define tools
	@missing=; for tool in $(TOOLS); do \
	  command -v "$${tool%%:*}" >/dev/null || missing="$$missing $$tool"; done; \
	if test -n "$$missing" && test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
	  timeout 60 apt-get update -qq >/dev/null 2>&1; \
	  for tool in $$missing; do \
	    echo "Installing $${tool%%:*}, which tests run"; \
	    DEBIAN_FRONTEND=noninteractive timeout 180 apt-get install -qq -y \
	      --no-install-recommends $$(echo "$${tool##*:}" | tr , ' ') >/dev/null 2>&1 || \
	    echo "$${tool%%:*} could not be installed; the tests that run it will be skipped"; \
	  done; \
	fi
endef

# $(1): the extras to install. A set-up that was cut off leaves HALF_DONE behind and is begun anew.
define set_up
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "make needs Python 3.11, and $(PYTHON) is not; name one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; \
	  exit 2; }
	@echo "Installing throughtime[$(1)] into $(VENV)" \
	  "(once; one to three minutes when packages must be downloaded)"
	@if test -e $(HALF_DONE); then rm -rf $(VENV); fi
	@mkdir -p $(VENV) && touch $(HALF_DONE)
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --editable '.[$(1)]'
	@mv $(HALF_DONE) $@ && touch $@
endef
