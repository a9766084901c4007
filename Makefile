# Everything that a person or CI runs. `make help` lists it.
CARGO ?= cargo
SEEDS ?= 10000
FROM ?= 1
RUNS ?= 5
ROUNDS ?= 1
SECONDS ?= 3
TARGET ?= frames
PREFIX ?= $(HOME)/.local
TARGET_DIR = $(or $(CARGO_TARGET_DIR),target)
BUILT = $(TARGET_DIR)/release
PYTHON ?= python3
# The Python SDK's own tools and test libraries, as sdk-python/requirements-dev.txt pins them.
VENV = $(TARGET_DIR)/python
WHEELS = $(TARGET_DIR)/wheels

.DEFAULT_GOAL := help
.PHONY: help demo test rust-test check fmt lint deny docs bench criterion compare waiting instructions \
	instructions-record faults simulate fuzz install clean wheel topology python-test python-lint python-venv

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 22

demo: ## the main job in 15 seconds: a server, handlers, requests, failures, a killed server, a burst
	$(CARGO) run --quiet --release --locked -p ringpost-cli --bin ringpost -- demo

test: rust-test python-test ## all tests

rust-test: ## those in Rust
	$(CARGO) test --workspace --locked

check: fmt lint docs python-lint test ## what CI runs

fmt: ## format is as rustfmt has it
	$(CARGO) fmt --all --check

lint: ## clippy without warnings
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

deny: ## licences, bans, sources of what is depended on; needs cargo-deny
	@command -v cargo-deny >/dev/null || { echo "cargo-deny is not here: cargo install cargo-deny"; exit 69; }
	$(CARGO) deny --locked check

docs: ## documentation builds without warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

$(VENV)/ready: sdk-python/requirements-dev.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or later is needed: make PYTHON=…"'
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

python-venv: $(VENV)/ready ## the wheel as it is built for tests, in a virtual environment with what its tests need
	rm -rf $(WHEELS)/dev
	$(VENV)/bin/maturin build --quiet --locked --profile dev --interpreter $(VENV)/bin/python \
	  --manifest-path sdk-python/Cargo.toml --out $(WHEELS)/dev
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps $(WHEELS)/dev/*.whl

python-test: python-venv ## the Python SDK's, on asyncio and uvloop
	cd sdk-python && $(abspath $(VENV))/bin/python -m pytest --quiet

topology: python-venv ## the reference's example system: servers, balancer, services, a front; each part is killed in turn
	$(VENV)/bin/python examples/topology/run.py

python-lint: python-venv ## ruff, mypy --strict and stubtest for the Python SDK
	cd sdk-python && $(abspath $(VENV))/bin/ruff format --check . ../examples && $(abspath $(VENV))/bin/ruff check . ../examples
	cd sdk-python && $(abspath $(VENV))/bin/mypy python
	cd sdk-python && $(abspath $(VENV))/bin/stubtest ringpost

wheel: $(VENV)/ready ## the Python SDK's wheel, into target/wheels
	rm -f $(WHEELS)/*.whl
	$(VENV)/bin/maturin build --locked --release --interpreter $(VENV)/bin/python \
	  --manifest-path sdk-python/Cargo.toml --out $(WHEELS)

bench: wheel ## figures into bench/RESULTS.md; NATS and HAProxy beside them where they are on the PATH
	$(CARGO) build --release --locked -p ringpost-cli -p ringpost-bench
	$(BUILT)/ringpost-bench rows --ringpost $(BUILT)/ringpost --wheel $(WHEELS) --python $(VENV)/bin/python \
	  --runs $(RUNS) --seconds $(SECONDS) --out bench/RESULTS.md

compare: ## the same; NATS must be there
	$(CARGO) build --release --locked -p ringpost-cli -p ringpost-bench
	$(BUILT)/ringpost-bench compare --ringpost $(BUILT)/ringpost --runs $(RUNS) --seconds $(SECONDS) --out bench/RESULTS.md

waiting: ## a million durable requests that wait: memory and disk for each, and the time of a start
	$(CARGO) build --release --locked -p ringpost-cli -p ringpost-bench
	$(BUILT)/ringpost-bench waiting --ringpost $(BUILT)/ringpost

criterion: ## micro benches of codec, scanner and core
	$(CARGO) bench --locked -p ringpost-bench

instructions: ## callgrind's counts for codec and cores, compared with bench/INSTRUCTIONS.json; needs valgrind
	@command -v valgrind >/dev/null || { echo "valgrind is not here: apt install valgrind (or dnf, pacman …)"; exit 69; }
	$(CARGO) build --release --locked -p ringpost-bench
	$(BUILT)/ringpost-bench instructions

instructions-record: ## the same, written to bench/INSTRUCTIONS.json
	@command -v valgrind >/dev/null || { echo "valgrind is not here: apt install valgrind (or dnf, pacman …)"; exit 69; }
	$(CARGO) build --release --locked -p ringpost-bench
	$(BUILT)/ringpost-bench instructions --record

fuzz: ## TARGET=frames|json|broker|client|records|recovery|damage|handshake|secure-records SECONDS=n: libFuzzer; needs nightly and cargo-fuzz
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is not here: cargo install cargo-fuzz"; exit 69; }
	$(CARGO) run --quiet --locked -p ringpost-fuzz-targets --bin fuzz-seeds fuzz/corpus
	$(CARGO) +nightly fuzz run $(TARGET) -- -max_total_time=$(SECONDS)

faults: ## ROUNDS=n: the fault tests on real processes, the heavy ones too, again and again
	for round in $$(seq $(ROUNDS)); do $(CARGO) test --locked -p ringpost-tests --test proxy --test signals \
	  --test restart --test slow --test crowd --test balancer -- --include-ignored || exit 1; \
	  $(CARGO) test --locked -p ringpost-balancer --test relay -- --include-ignored || exit 1; done

simulate: ## SEEDS=n FROM=n: many histories of the simulation; stops at one that fails, and cuts it down
	$(CARGO) run --quiet --release --locked -p ringpost-tests --bin simulate -- --seeds $(SEEDS) --from $(FROM)

install: ## the command `ringpost` into PREFIX/bin
	$(CARGO) install --locked --force --path cli --bin ringpost --root $(PREFIX)

clean: ## what was built
	$(CARGO) clean
