# What there is to do here. Everything that needs root says so itself.

CARGO ?= cargo
TEST_ARGS ?=
ARGS ?=

.PHONY: demo test test-full-kernel lint bench soak fuzz evpn-matrix setup build

# A whole cluster on this machine, with proof of who reaches whom. Leaves it up: `vpc lab down`.
# Options of `vpc lab demo` in ARGS, as in make demo ARGS="--speaker frr".
demo: setup
	$(CARGO) build --release -p vpc
	target/release/vpc lab demo $(ARGS)

# What CI runs.
test: setup lint
	$(CARGO) build --workspace --all-targets
	$(CARGO) test --workspace $(TEST_ARGS)
	$(CARGO) xtask tidy

# The fuzz targets are a workspace of their own: checked here, so that they do not fall behind. Nothing
# is linked, so the fuzzer's C++ is not built either.
lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	CUSTOM_LIBFUZZER_PATH=/not-linked/libfuzzer.a $(CARGO) check --manifest-path fuzz/Cargo.toml \
		--target-dir $${CARGO_TARGET_DIR:-target}

# Figures as ratios against a baseline measured in the same run.
bench: setup
	scripts/setup.sh --bench
	$(CARGO) build --release -p vpc -p bench
	$(CARGO) build --release -p linux --examples
	$(CARGO) build --release -p speaker --examples
	target/release/bench

# The kernel tests and the lab suite on a kernel that has what a small one lacks: VLAN filtering
# above all. The first run builds the kernel, some ten minutes. What is built here is used there, so that the
# packages named are the same each time; the program itself is optimized, as such a kernel takes each page and call of it
# ten times as long. Then what differs where TAPs carry: there they are trunks.
ON_FULL_KERNEL = -p linux -p tunnel -p agent -p lab
OVER_TAP ?= capture:: distributed:: evpn:: moves:: reach:: reflector:: transports:: type5
OPTIMIZED = VPC_BIN=$${CARGO_TARGET_DIR:-$(CURDIR)/target}/release/vpc
test-full-kernel: setup
	scripts/setup.sh --kernel
	$(CARGO) build --release -p vpc
	$(CARGO) test --no-run $(ON_FULL_KERNEL)
	$(OPTIMIZED) $(CARGO) xtask kernel run --mem 4096 --timeout 5000 -- \
		$(CARGO) test --offline --no-fail-fast $(ON_FULL_KERNEL) -- --test-threads=2
	$(OPTIMIZED) VPC_TRANSPORT=tap $(CARGO) xtask kernel run --mem 4096 --timeout 3000 -- \
		$(CARGO) test --offline --no-fail-fast $(ON_FULL_KERNEL) --test suite -- --test-threads=2 $(OVER_TAP)

# What takes too long for `test`: the suite on a full kernel, long rounds of killing and of many
# NICs, a virtual machine that boots, the demo over and over.
soak: test-full-kernel
	scripts/setup.sh --vm
	VPC_SOAK=1 $(CARGO) test -p lab --test suite -- --test-threads=1 crash moves scale frr::what failover \
		routers::lasting routers::machine userspace::killed volumes::contract::leaders
	VPC_SOAK=1 $(CARGO) test -p lab --test matrix -- --include-ignored e34
	VPC_REPLICATION_FIRST=$$(date +%s) VPC_REPLICATION_SEEDS=300 $(CARGO) test --release -p replication --test cluster volumes_survive -- --nocapture
	BLOCKS_SEED=$$(date +%s) BLOCKS_SEEDS=2000 $(CARGO) test --release -p blocks
	for round in 1 2 3 4 5 6 7 8 9 10; do \
		target/debug/vpc lab demo --name soak --down || exit 1; \
	done

# Every EVPN scenario with every pairing of speakers, as a table in docs/protocols/evpn.md.
evpn-matrix: setup
	$(CARGO) build -p vpc
	VPC_MATRIX=$(CURDIR)/docs/protocols/evpn.md \
		$(CARGO) test -p lab --test matrix -- --include-ignored

# Coverage-guided fuzzing of everything that decodes another's bytes; so long for each target.
FUZZ_SECONDS ?= 20
FUZZ_TARGETS ?= bgp_open bgp_stream bgp_messages bgp_update netlink nftables protobuf stored names dns metadata \
	dhcp_v4 dhcp_v6 dhcp_frame router_solicitation lease_messages lease replication datapath_neighbour datapath_filter datapath_tap datapath_tunnel \
	nbd_codec nbd_server nbd_client block_store volume_frames
fuzz:
	scripts/setup.sh --fuzz
	scripts/fuzz.sh $(FUZZ_SECONDS) $(FUZZ_TARGETS)

setup:
	scripts/setup.sh

build:
	$(CARGO) build --release -p vpc
