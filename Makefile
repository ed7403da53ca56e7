# make demo: see it work.  make test: what has to pass before a change lands.
PYTHON ?= python3
TEST_FLAGS ?= -n 2 --dist worksteal
SOURCES := $(wildcard lens_adapter tests examples benchmarks setup.py)
BIN := .venv/bin
# The part of the suite that touches transformers' inner workings; tests marked `once` are left out.
OLDEST_TESTS := $(wildcard tests/vlm tests/sam tests/traps tests/zoo tests/hub tests/training tests/builtin/test_shipped*.py \
    tests/test_config.py tests/test_adapter.py tests/test_guarantees.py tests/test_checkpoint.py tests/test_bad_input.py \
    tests/test_safe_checkpoints.py tests/test_chat.py tests/test_pipeline.py)
# Without gradio, starlette, uvicorn and Ray these are skipped.
APP_TESTS := tests/app/test_app_page.py tests/app/test_app_attacks.py tests/app/test_app_browser.py \
    tests/serving/test_server.py tests/training/test_logging.py tests/annotation/test_cluster.py
# The rooms one by one, the models that ship, and one architecture.
QUICK_TESTS := $(filter-out tests/test_packaging.py, $(wildcard tests/builtin tests/data tests/evaluation tests/head \
    tests/pictures tests/sam tests/vlm tests/test_*.py))

export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test quick docs style types format clean

demo: .venv/.ready
	$(BIN)/lens-adapter demo

test: style types .oldest/.ready .app/.ready
	$(BIN)/python -m pytest $(TEST_FLAGS)
	@PYTHONPATH=.oldest $(BIN)/python -c "import transformers; print('Again with transformers', transformers.__version__)"
	PYTHONPATH=.oldest $(BIN)/python -m pytest $(TEST_FLAGS) -m "not once" $(OLDEST_TESTS)
	PYTHONPATH=.app $(BIN)/python -m pytest $(APP_TESTS)

# What to run while working, in less than two minutes: LLaVA stands for all architectures.
quick: .venv/.test-ready
	$(BIN)/python -m pytest $(TEST_FLAGS) -k "not qwen" $(QUICK_TESTS)

# The site, into build/site; a warning is an error.
docs: .venv/.docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

style: .venv/.test-ready
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

types: .venv/.test-ready
	$(BIN)/mypy

format: .venv/.test-ready
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:
	rm -rf .venv .oldest .app build/lib build/bdist.* dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find lens_adapter tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.ready: setup.cfg setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv/.docs-ready: .venv/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

.venv/.test-ready: .venv/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

# Laid over .venv by PYTHONPATH: torch and the rest are installed once.
.oldest/.ready: .venv/.test-ready constraints-oldest.txt
	rm -rf .oldest
	$(BIN)/python -m pip install --quiet --no-deps --target .oldest -r constraints-oldest.txt
	touch $@

# The same for the page, the server, trackio and Ray, some of which hold Pillow back: they are no part of what everything else
# is tested with.
.app/.ready: .venv/.ready constraints-app.txt
	rm -rf .app
	$(BIN)/python -m pip install --quiet --target .app -r constraints-app.txt
	touch $@
