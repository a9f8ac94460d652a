#!/usr/bin/env bash
# Puts bugs into a copy of a crate, one after another, and counts the seeds until its tests see each.
# `scripts/planted.sh blocks|replication [MOST_SEEDS [NAME]]`: the bugs are in core/CRATE/tests/planted.sh. Needs a
# workspace that builds; leaves it as it is.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
crate=$1
only=${3:-}
case $crate in
blocks)
    copied=(blocks) tests=store
    export BLOCKS_SEEDS=${2:-400}
    ;;
replication)
    copied=(blocks replication) tests=cluster
    export VPC_REPLICATION_TWICE=0 VPC_REPLICATION_FIRST=1 VPC_REPLICATION_SEEDS=${2:-100}
    ;;
*)
    echo "there are bugs for blocks and for replication" >&2
    exit 2
    ;;
esac
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
missed=0
# Not where others build: what has a bug is never taken for what has none.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target/planted}

says() { # what about the bug that is in
    echo "$name: $*"
}

misses() {
    says "$@"
    missed=1
}

run() { # cargo's further arguments
    (cd "$copy/tree" && timeout 600 cargo test -q --release --offline -p "$crate" --test "$tests" "$@")
}

plant() { # name, test, and for each place: file, from, to
    local name=$1 test=$2 ended=0 seed
    shift 2
    [[ -z $only || $only == "$name" ]] || return 0
    rm -rf "$copy/tree"
    mkdir -p "$copy/tree/core"
    cp -r "${copied[@]/#/$root/core/}" "$copy/tree/core/"
    sed -e "s/^members = .*/members = [\"core\/*\"]/" "$root/Cargo.toml" > "$copy/tree/Cargo.toml"
    cp "$root/Cargo.lock" "$root/rust-toolchain.toml" "$copy/tree/"
    while (($#)); do
        if ! FROM=$2 TO=$3 perl -0pi -e 'BEGIN { $f = quotemeta $ENV{FROM}; $t = $ENV{TO} } s/$f/$t/ or die' \
            "$copy/tree/$1" 2> /dev/null; then
            misses "does not fit any more"
            return
        fi
        shift 3
    done
    if ! run --no-run > "$copy/build" 2>&1; then
        tail -20 "$copy/build"
        misses "does not build"
        return
    fi
    # What happens by name takes seconds: if that sees it, seeds are not asked.
    if [[ $test != "$random" ]] || run -- --skip "$random" --nocapture > "$copy/run" 2>&1; then
        run "$test" -- --nocapture > "$copy/run" 2>&1 || ended=$?
    else
        says "seen by $(grep -oP "^thread '\K[^']*(?=.*panicked)" "$copy/run" | sort -u | paste -sd' ')"
        return
    fi
    seed=$(grep -oE '^(seed |BLOCKS_SEED=)[0-9]+' "$copy/run" | tail -1 | grep -oE '[0-9]+') || seed=
    case $ended in
    0) misses "NOT seen by $test${seed:+ in seeds up to $seed}" ;;
    124) misses "NOT seen in 600 s by $test${seed:+, up to seed $seed}" ;;
    *) says "seen by $(grep -m1 -oP "thread '\K[^']*(?=.*panicked)" "$copy/run")${seed:+ at seed $seed}: $(grep -m1 -A1 panicked "$copy/run" | tail -1 | cut -c1-90)" ;;
    esac
}

# shellcheck source=/dev/null
source "$root/core/$crate/tests/planted.sh"
exit $missed
