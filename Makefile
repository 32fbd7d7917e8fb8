# Tinsmith: `make demo` shows it, `make test` proves it; `make help` lists the rest.
# Needs Python 3.11, git and make. PYTHON= names the interpreter; PORT= moves the gateway.

.DEFAULT_GOAL := help
.PHONY: bench bench-load bench-parity bench-sample bench-train clean compatibility conformance demo format fuzz help lint lock migration pants-resolves proto serve setup soak test test-cookbook test-pants test-unit
MAKEFLAGS += --no-print-directory
# Without cached bytecode every process compiles torch, ray and SGLang again: some 20 s of CPU per start.
export PYTHONDONTWRITEBYTECODE :=

RUN := .venv/bin/python
# Its node comes from the lock too, so that no other one is needed or used.
PYRIGHT := PYRIGHT_PYTHON_GLOBAL_NODE=0 PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(RUN) -m pyright

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## make .venv and .venv-sample exactly as locked; nothing to do when they are current
	@python=$$(tools/find-python) && "$$python" -m tools.setup

demo: setup  ## fine-tune and then reinforce a tiny model through the whole stack; writes out/demo/
	@$(RUN) -m tinsmith_local run -- $(CURDIR)/$(RUN) -m examples.demo

serve: setup  ## run the stack in the foreground on 127.0.0.1:8000 (PORT=, TLS=1, TLS_CERT= TLS_KEY=)
	@$(RUN) -m tinsmith_local serve $(if $(PORT),--port $(PORT)) $(if $(TLS),--tls) \
		$(if $(TLS_CERT),--tls-cert $(TLS_CERT)) $(if $(TLS_KEY),--tls-key $(TLS_KEY))

test: setup  ## every test: units, engines, the whole stack, and each part under Pants
	@$(RUN) -m tools.test

test-unit: setup  ## the tests that start no other process: under a minute
	@$(RUN) -m tools.test unit

test-cookbook: setup  ## every recipe of the cookbook for a few steps, and docs/cookbook.md from what came of it
	@$(RUN) -m tools.test cookbook && $(RUN) -m tests.cookbook.report

test-pants: setup  ## `pants test` for each service and for libs (needs a CPython 3.9)
	@$(RUN) -m tools.test pants

pants-resolves: setup  ## write out/pants, which `pants` with its ordinary launcher needs
	@$(RUN) -m tools.pants resolves

conformance: setup  ## the protocol row by row, with a table (TINKER_BASE_URL= tests a server that runs)
	@$(RUN) -m pytest -q -m row --conformance $(if $(TINKER_BASE_URL),--against $(TINKER_BASE_URL)) libs tests

fuzz: setup  ## bodies and requests that are nearly right, FUZZ_SECONDS= (300) for each of four fuzzers
	@FUZZ_SECONDS=$(or $(FUZZ_SECONDS),300) $(RUN) -m pytest -q -s -o faulthandler_timeout=0 tests/fuzz

lint: setup  ## ruff and pyright
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(PYRIGHT) --pythonpath .venv/bin/python
	$(PYRIGHT) --pythonpath .venv-sample/bin/python services/sample

format: setup  ## let ruff rewrite what it can
	@$(RUN) -m ruff check --fix --quiet . ; $(RUN) -m ruff format .

proto: setup  ## generate the protobuf code again from its .proto file
	@cd libs/common/tinsmith_common/wire && $(CURDIR)/$(RUN) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. *.proto

bench-train: setup  ## the engine against Hugging Face + PEFT: tokens/s, TFLOP/s, memory, tenants, lengths
	@$(RUN) -m benchmarks.train $(ARGS)

bench-parity: setup  ## how far logprobs and gradients are from fp32, beside Hugging Face + PEFT
	@$(RUN) -m benchmarks.parity $(ARGS)

migration: setup  ## write the next migration from what changed in the tables (NAME="what it does")
	@$(RUN) -m tools.migration "$(NAME)" && $(RUN) -m ruff format --quiet libs/common/tinsmith_common/migrations

bench: setup  ## the engine and the train service against torch + peft, then small calls through the whole stack
	@$(RUN) -m benchmarks.engine
	@OMP_WAIT_POLICY=PASSIVE $(RUN) -m benchmarks.service
	@$(RUN) -m tinsmith_local run -- $(CURDIR)/$(RUN) -m benchmarks.latency

compatibility: setup  ## try every supported SDK version; writes docs/compatibility.md (CHECK=1 compares instead)
	@$(RUN) -m tools.compatibility $(if $(CHECK),--check)

bench-load: setup  ## 2,000 samples at once, cleartext and HTTPS; writes benchmarks/results/ (SAMPLES=)
	@$(RUN) -m benchmarks.load $(if $(SAMPLES),--samples $(SAMPLES))

bench-sample: setup  ## the sample service against SGLang's own engine: tokens/s, added latency, adapters (ARGS=)
	@$(RUN) -m benchmarks.sample $(ARGS)

soak: setup  ## 20 minutes of samples, cancellations, new weights and crashes: nothing lost, memory flat (ARGS=)
	@$(RUN) -m benchmarks.soak $(ARGS)

lock:  ## resolve locks/*.txt again from the pyproject files (UPGRADE=1 for the newest versions)
	@python=$$(tools/find-python) && "$$python" -m tools.lock $(if $(UPGRADE),--upgrade)

clean:  ## remove the environments and everything the targets wrote
	rm -rf .venv .venv-sample .venv-sdks .venv-tools .venv-pants out dist .pants.d .pids .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
