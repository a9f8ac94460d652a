# What there is to do here. Everything that needs root says so itself.

CARGO ?= cargo
TEST_ARGS ?=

.PHONY: demo test test-full-kernel lint bench soak setup build

# A whole cluster on this machine, with proof of who reaches whom. Leaves it up: `vpc lab down`.
demo: setup
	$(CARGO) build --release -p vpc
	target/release/vpc lab demo

# What CI runs.
test: setup lint
	$(CARGO) build --workspace --all-targets
	$(CARGO) test --workspace $(TEST_ARGS)
	$(CARGO) xtask tidy

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

# Figures as ratios against a baseline measured in the same run.
bench: setup
	$(CARGO) build --release -p vpc
	$(CARGO) xtask bench

# The lab on a kernel that has what a small one lacks: VLAN filtering above all.
test-full-kernel:
	scripts/setup.sh --kernel
	$(CARGO) build --release -p vpc
	$(CARGO) xtask kernel run --mem 4096 -- target/release/vpc lab demo --down

# What takes too long for `test`: the lab on a full kernel, and the demo over and over.
soak: setup test-full-kernel
	for round in 1 2 3 4 5 6 7 8 9 10; do \
		target/release/vpc lab demo --name soak --down || exit 1; \
	done

setup:
	scripts/setup.sh

build:
	$(CARGO) build --release -p vpc
