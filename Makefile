# Everything a contributor runs; each target does its own set-up on a Debian machine with Rust.
# `make help` lists the targets.

SHELL := /bin/sh
.DEFAULT_GOAL := help

# The tests' programs (nginx, nft, ip) are in here, which an ordinary user's PATH leaves out.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
# A fault may stop one test for as long as its own deadlines; this stops a run that has none left.
TEST_LIMIT ?= 20m
SOAK_LIMIT ?= 8h
# Most tests wait for something far longer than they compute.
TEST_THREADS ?= 4

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: test
test: setup lint ## Set up, check format and lints, run every test (short forms)
	cargo test --workspace --locked --no-run
	RUST_TEST_THREADS=$(TEST_THREADS) timeout --kill-after=10 $(TEST_LIMIT) .ci/in-namespaces cargo test --workspace --locked --offline

.PHONY: lint
lint: ## Check format and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

.PHONY: demo
demo: ## Show the whole story in private namespaces, in under a minute
	@.ci/setup demo
	cargo build --locked --quiet --bin proxyctl
	target/debug/proxyctl demo

.PHONY: figures
figures: setup ## Measure every promised number on the release build
	cargo build --release --locked --bin proxyctl
	cargo test --locked --no-run --test figures
	OUTRIGGER_PROXYCTL=target/release/proxyctl .ci/in-namespaces cargo test --locked --offline --quiet \
		--test figures -- --nocapture --test-threads=1

.PHONY: bench
bench: setup ## Run the benches of the hot path
	cargo bench --workspace --locked --benches

.PHONY: soak
soak: setup ## Run every test in its long form, on the release build (hours)
	cargo build --release --locked --bin proxyctl
	cargo test --workspace --locked --no-run
	OUTRIGGER_SOAK=1 OUTRIGGER_PROXYCTL=target/release/proxyctl timeout --kill-after=10 $(SOAK_LIMIT) \
		.ci/in-namespaces cargo test --workspace --locked --offline --no-fail-fast -- --include-ignored --nocapture --test-threads=1

.PHONY: setup
setup: ## Install what the tests need and this machine lacks
	@.ci/setup test
