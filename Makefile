# Every target does its own set-up: all that must be there is Python 3.11 or newer (another than python3: make PYTHON=...).
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
INSTALLED := .venv-installed
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check install --quiet
PYTEST := -m pytest -n 2 --dist worksteal
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo assets lint format picture test test-all native-asan test-oldest docs notebooks bench dist clean

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

demo: $(VENV)/.examples  ## label the packaged photos with two real networks, float beside eight-bit (ARGS="my.jpg --top 3")
	@$(BIN)/python -m examples.assets
	@$(BIN)/python examples/label_image.py $(ARGS)

assets: $(VENV)/.examples  ## install all models and data that examples and tests use
	@$(BIN)/python -m examples.assets --full

lint: $(VENV)/.test  ## check style, format, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted; run: make format"; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/mypy --strict --config-file= --follow-imports=silent tests/typing_uses.py
	@found=$$($(BIN)/lint-imports --no-cache --no-logo 2>&1) || { echo "$$found"; exit 1; }
	@$(BIN)/python docs/draw_imports.py --check

format: $(VENV)/.test  ## put the code into the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

picture: $(VENV)/.test  ## draw docs/imports.svg, the folders and their imports, anew
	@$(BIN)/python docs/draw_imports.py

# Compiling is most of the time of the tests, and these flags halve it: LLVM optimises little, and loops are written in the older
# way. (At level 0 XLA:CPU reads memory that nobody has written.) Tests marked `compiled` are about what compilers make of eight
# bits; they run with XLA's own flags, as users have them. pytest's status 5 says that ARGS chose no test of a part.
QUICK := XLA_FLAGS="--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
test: lint assets  ## lint and the tests that take no more than a few seconds each (ARGS="-k conv")
	@$(BIN)/python $(PYTEST) -m "compiled and not slow" $(ARGS); first=$$?; \
	$(QUICK) $(BIN)/python $(PYTEST) -m "not compiled and not slow" $(ARGS); second=$$?; \
	for status in $$first $$second; do [ $$status = 0 ] || [ $$status = 5 ] || exit $$status; done

test-all: lint assets  ## all tests
	@$(BIN)/python $(PYTEST) $(ARGS)

# The sanitizers' runtime must be the first library of the process. Leaks are not looked for: Python and XLA keep much until the
# end. The loops' sums of eight bits wrap on purpose in unsigned arithmetic, which UBSan does not mind.
SECONDS ?= 60
native-asan: $(VENV)/.test  ## random and damaged native programs under AddressSanitizer and UBSan (SECONDS=60)
	@JAXQ8_NATIVE_FLAGS="-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined" \
	LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	$(BIN)/python -m tests.native_fuzz $(SECONDS)

# What differs between versions is JAX's interface: the pretrained models are left out, most random cases, and the files of tests
# whose subject is not JAX (the command line, the format of files, learned rounding, published rows of numbers).
NO_JAX := benchmarks browser cli cli_errors cli_lists cli_native cli_run codebook conformance_onnx conformance_tf differential \
  docs docstrings doctor examples_data examples_programs examples_readers files flax_state generate html joins \
  laboratory learned native_elementwise native_extension native_processes native_reductions native_transformers notebooks \
  observers operands outliers packed reconstruct repairs rounding rounding_lab simulation tuning
test-oldest: $(OLDEST)/.test  ## the tests of the library with the oldest dependencies (.ci/oldest.txt)
	@HYPOTHESIS_PROFILE=quick $(QUICK) $(OLDEST)/bin/python $(PYTEST) \
	  -m "not slow and not assets" $(NO_JAX:%=--ignore=tests/test_%.py) $(ARGS)

# The variable silences a notice of the theme's authors about their next project (BUILD_NOTES.md has an entry on it).
docs: $(VENV)/.docs  ## build the documentation into build/site; any warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Built: open build/site/index.html"

bench: $(VENV)/.bench  ## measure speed beside the peers (ARGS="--batch 1,8 --out results")
	@$(BIN)/python -m benchmarks $(ARGS)

notebooks: $(VENV)/.notebooks assets  ## run the tutorials from top to bottom and keep what they show (ARGS="docs/tutorials/x.ipynb")
	@$(BIN)/python docs/run_notebooks.py $(ARGS)

# `build` makes the wheel out of the sdist, so the sdist is complete if the wheel works. It is tried in an environment that has
# nothing else, from a folder where Python cannot find the sources.
dist: $(VENV)/.dist  ## build sdist and wheel into dist/, install the wheel in a clean environment and try it
	@rm -rf dist $(INSTALLED)
	@$(BIN)/python -m build --outdir dist .
	@$(PYTHON) -m venv $(INSTALLED)
	@$(INSTALLED)/bin/python $(PIP) dist/*.whl
	@cd $(INSTALLED) && bin/python -I ../.ci/try_installed.py

clean:  ## remove everything that the targets above made, the assets too
	rm -rf $(VENV) $(OLDEST) $(INSTALLED) .assets .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find jaxq8 tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +

# A stamp in the environment says which extras it has; pyproject.toml decides when to install again.
$(VENV)/.made $(OLDEST)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxq8 needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=...")'
	@echo "Making $(@D) ..."
	@$(PYTHON) -m venv $(@D)
	@touch $@

$(VENV)/.%: pyproject.toml | $(VENV)/.made
	@echo "Installing jaxq8[$*] and what it needs into $(VENV) (a minute or two, once) ..."
	@$(BIN)/python $(PIP) --editable '.[$*]'
	@touch $@

$(OLDEST)/.test: pyproject.toml .ci/oldest.txt | $(OLDEST)/.made
	@echo "Installing jaxq8[test] with its oldest dependencies into $(OLDEST) (a minute or two, once) ..."
	@$(OLDEST)/bin/python $(PIP) --constraint .ci/oldest.txt --editable '.[test]'
	@touch $@
