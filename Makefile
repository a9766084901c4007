# Everything that a person or CI runs. `make help` lists it.
CARGO ?= cargo
SEEDS ?= 10000
FROM ?= 1
RUNS ?= 5
SECONDS ?= 3
PREFIX ?= $(HOME)/.local

.DEFAULT_GOAL := help
.PHONY: help demo test check fmt lint docs bench criterion compare simulate install clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: ## the main job in 15 seconds: a server, handlers, requests, failures, a burst
	$(CARGO) run --quiet --release --locked -p ringpost-cli --bin ringpost -- demo

test: ## all tests
	$(CARGO) test --workspace --locked

check: fmt lint docs test ## what CI runs

fmt: ## format is as rustfmt has it
	$(CARGO) fmt --all --check

lint: ## clippy without warnings
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

docs: ## documentation builds without warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

bench: ## figures into bench/RESULTS.md; NATS beside them where nats-server is on the PATH
	$(CARGO) build --release --locked -p ringpost-cli -p ringpost-bench
	target/release/ringpost-bench rows --runs $(RUNS) --seconds $(SECONDS) --out bench/RESULTS.md

compare: ## the same; NATS must be there
	$(CARGO) build --release --locked -p ringpost-cli -p ringpost-bench
	target/release/ringpost-bench compare --runs $(RUNS) --seconds $(SECONDS) --out bench/RESULTS.md

criterion: ## micro benches of codec, scanner and core
	$(CARGO) bench --locked -p ringpost-bench

simulate: ## SEEDS=n FROM=n: many histories of the simulation
	$(CARGO) run --quiet --release --locked -p ringpost-tests --bin simulate -- --seeds $(SEEDS) --from $(FROM)

install: ## the command `ringpost` into PREFIX/bin
	$(CARGO) install --locked --force --path cli --bin ringpost --root $(PREFIX)

clean: ## what was built
	$(CARGO) clean
