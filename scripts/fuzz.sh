#!/bin/sh
# Coverage-guided fuzzing: `scripts/fuzz.sh SECONDS TARGET...`. What it finds is left in
# fuzz/artifacts/TARGET/; `cargo fuzz run -s none TARGET FILE` shows it again. What was found to be
# worth trying is kept in fuzz/corpus/, which begins with what our own encoders make.
set -eu
cd "$(dirname "$0")/.."
seconds=$1
shift

command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
# Memory errors are what sanitizers find, and what is fuzzed is safe code: without them it runs three
# times as fast and needs no nightly compiler.
cargo fuzz build --sanitizer none --release --debug-assertions
triple=$(rustc -vV | sed -n 's/^host: //p')
built=${CARGO_TARGET_DIR:-fuzz/target}/$triple/release
mkdir -p fuzz/corpus
FUZZ_SEEDS=fuzz/corpus "$built/seeds" -runs=0 2>/dev/null

failed=
for target in "$@"; do
	mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
	echo "-- $target, $seconds s"
	# 64 MiB at once, or half a GiB in all, for a few KiB of input is a finding too.
	"$built/$target" -max_total_time="$seconds" -timeout=10 -malloc_limit_mb=64 -rss_limit_mb=512 \
		-use_value_profile=1 -print_final_stats=1 -artifact_prefix="fuzz/artifacts/$target/" \
		"fuzz/corpus/$target" >"fuzz/artifacts/$target.log" 2>&1 || failed="$failed $target"
	grep -E ' DONE |stat::number_of_executed_units|SUMMARY|panicked' "fuzz/artifacts/$target.log" || true
done
[ -z "$failed" ] || { echo "findings:$failed (fuzz/artifacts)"; exit 1; }
