# make demo     sheets of images of a known world and of real photographs -> out/demo.png, out/followed.png
# make test     the tests (make test-long: those that take minutes; SHORT=1 shortens them)
# make mutants  small wrong changes of the code, one at a time: the tests must notice each
# make fuzz MINUTES=60  damaged and hostile inputs for every reader, in watched processes -> out/fuzz
# make quality  what must be clean before a change lands; make style repairs what can be repaired
# make check-docs  whether README, docs and cards say what results say (part of quality); make write-docs writes them
# make train-bundled  the bundled models again, stage by stage (DATA=, TEST=: CIFAR-10; DEVICE=cuda; LIST=1) -> out/bundled;
#   SHIP=rcdm_fast/bundled writes what is made there as it ships
# make docs     the documentation as pages -> out/site (SERVE=1: at 127.0.0.1:8000, made anew at every change)
# make calibrate  how often verdicts are wrong where the truth is known, quickly -> out/calibration-quick.json
# make notebooks  run the notebooks in examples/ and keep their outputs in them
# make bench    benchmarks: operators, network evaluations beside their rivals, a training step -> out/bench_*
# make gpu-model  what a roofline says of an evaluation on a GPU, without one (DEVICE="H100 A100" BATCHES="1 64")
# make bench-gpu PART=build|ops|step|tune   the same on a GPU, with the Python that is there -> $OUT or out/
#   PART=tune BATCHES="1 64": which batches; REHEARSE=1: the same way on the CPU, at sizes of nothing
# Every other target installs what it needs into $(VENV) first.

PYTHON ?= python3.11
VENV ?= .venv
EXTRAS := encoders,hub,onnx,openvino,diffusers,train,data,jobs,app,demo,notebooks,test,dev,docs

# TensorRT-RTX comes as source packages that fetch nothing; they need the environment's own setuptools and wheel.
RTX := tensorrt-rtx-cu13 tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
NATIVE := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)

.PHONY: venv demo calibrate docs notebooks train-bundled test test-long fuzz mutants quality style check-docs write-docs bench bench-gpu gpu-model clean

venv: $(STAMP)

# torch first: the native parts are compiled against the torch that is already there.
$(STAMP): pyproject.toml setup.py constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt setuptools wheel torch torchvision
	$(PIP) install -c constraints.txt -e ".[$(EXTRAS)]"
	$(PIP) install -c constraints.txt --no-build-isolation $(RTX)
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs $(if $(SERVE),serve,build)

# All of it, which ships: rcdm calibrate LABEL=FILE... --json rcdm_fast/bundled/calibration.json
calibrate: $(STAMP)
	mkdir -p out
	$(BIN)/rcdm calibrate --quick --max-wrong 0 --json out/calibration-quick.json

notebooks: $(STAMP)
	$(BIN)/python examples/run_notebooks.py

DATA ?= cifar10/train
TEST ?= cifar10/test
DEVICE ?= cpu
train-bundled: $(STAMP)
	$(BIN)/python -m rcdm_fast.training.bundled --data $(DATA) --test $(TEST) --device $(DEVICE) $(if $(LIST),--list) $(if $(SHIP),--ship $(SHIP))

# Two files at once, a thread each: with more threads than cores PyTorch's wait for each other. What Python compiles is
# kept, whatever the environment says: a test run, and every process in it, compiles as much for ten seconds.
test test-long: export PYTHONDONTWRITEBYTECODE =
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile

test-long: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -n 2 --dist loadfile $(if $(SHORT),--short)

# ONLY=words picks mutants by name or file, EVERY=n every n-th.
mutants: $(STAMP)
	$(BIN)/python -m tests.mutants.run $(if $(ONLY),--only "$(ONLY)") $(if $(EVERY),--every $(EVERY))

# Equally many inputs of every kind; FUZZ="--kind tar --number 12" reads a single one, and so on.
MINUTES ?= 60
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.run --minutes $(MINUTES) $(FUZZ)

quality: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.documents

check-docs: $(STAMP)
	$(BIN)/python -m benchmarks.documents

write-docs: $(STAMP)
	$(BIN)/python -m benchmarks.documents --write

style: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BENCH_STAMP): $(STAMP)
	$(PIP) install -c constraints.txt -e ".[bench]"
	touch $@

bench: $(BENCH_STAMP)
	mkdir -p out
	$(BIN)/python -m pytest benchmarks/bench_ops.py --benchmark-only --benchmark-json=out/bench_ops.json
	$(BIN)/python benchmarks/bench_step.py --configs s --rounds 10 --json out/bench_step.json --markdown out/bench_step.md
	$(BIN)/python benchmarks/bench_training.py --config s --rounds 8 --json out/bench_training.json
	$(BIN)/python benchmarks/bench_generate.py --rounds 5 --images 256 --json out/bench_generate.json

# No virtual environment and no downloads: a machine with a GPU may have neither. PYTHON=... names another Python.
GPU_PYTHON := $(if $(filter file,$(origin PYTHON)),python3,$(PYTHON))
bench-gpu:
	$(if $(filter build ops step tune,$(PART)),,$(error bench-gpu needs PART=build, ops, step or tune))
	$(GPU_PYTHON) benchmarks/bench_gpu.py $(PART) $(if $(BATCHES),--batches $(BATCHES)) $(if $(REHEARSE),--rehearse)

gpu-model: $(STAMP)
	$(BIN)/python benchmarks/gpu_model.py --device $(if $(filter cpu,$(DEVICE)),H100,$(DEVICE)) $(if $(BATCHES),--batches $(BATCHES))

# Everything made here except $(VENV).
clean:
	rm -rf build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
	rm -f rcdm_fast/_build_info.py rcdm_fast/_C*.so $(STAMP) $(BENCH_STAMP)
