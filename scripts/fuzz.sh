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

# Fuzzes a target for so many seconds, as far as its first finding.
fuzz() {
	"$built/$1" -max_total_time="$2" -timeout=10 -malloc_limit_mb=64 -rss_limit_mb=512 \
		-use_value_profile=1 -print_final_stats=1 -artifact_prefix="$artifacts/" "fuzz/corpus/$1" >"$log" 2>&1
}

# Whether what ended the last run took that long only because the fuzzer itself was stopped meanwhile, as by
# ctrl-Z or for a measurement: its clock goes on then.
stood_still() {
	slow=$(sed -n 's/.*Test unit written to \(.*timeout-[0-9a-f]*\)$/\1/p' "$log")
	[ -n "$slow" ] && "$built/$1" -timeout=10 "$slow" >/dev/null 2>&1 && rm "$slow"
}

failed=
for target in "$@"; do
	artifacts=fuzz/artifacts/$target
	log=$artifacts.log
	mkdir -p "fuzz/corpus/$target" "$artifacts"
	echo "-- $target, $seconds s"
	ends=$(($(date +%s) + seconds))
	while left=$((ends - $(date +%s))) && [ $left -gt 0 ]; do
		found=
		fuzz "$target" $left || found=y
		grep -E ' DONE |stat::number_of_executed_units|SUMMARY|panicked' "$log" || true
		[ -n "$found" ] || break
		stood_still "$target" || { failed="$failed $target"; break; }
		echo "   that input takes no time by itself: on with it"
	done
done
[ -z "$failed" ] || { echo "findings:$failed (fuzz/artifacts)"; exit 1; }
