# Everything a fresh machine needs is Python 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUN = $(VENV)/bin/python
DEMO = output/demo
# Every test runs on one thread, so a process a core.
TEST = $(RUN) -m pytest -q -n auto --maxprocesses 4 --durations 40 --dist

.PHONY: demo test slow fuzz check format schema bench

demo: $(VENV)/ready  ## search for two prompts on the bundled model, then draw the collages
	$(RUN) main.py --pipeline_config_path=configs/shapes_flux.json --output_dir=$(DEMO)
	$(RUN) process_results.py --path="$$(ls -d $(DEMO)/shapes-flux/clip/clip_score/*/ | tail -n 1)"

test: $(VENV)/ready  ## the default tests
	$(TEST) loadfile

slow: $(VENV)/ready  ## the tests that take longer
	$(TEST) worksteal -m slow

fuzz: $(VENV)/ready  ## thousands of damaged configs, prompt files and run folders, other ones each time
	$(TEST) loadfile -m fuzz

check: $(VENV)/ready  ## style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/ready
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

schema: $(VENV)/ready  ## write configs/schema.json anew
	$(RUN) -c "from pathlib import Path; from experiment.schema import write_schema; write_schema(Path('configs/schema.json'))"

bench: $(VENV)/ready  ## what the project costs and claims on a CPU
	$(RUN) -m benchmarks

$(VENV)/ready: requirements.txt
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed') if sys.version_info < (3, 11) else None"
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
