#!/usr/bin/env bash
# Builds this and runs a tiny form of each part, so that none of it rots. Figures from this mean nothing.
# Arguments go to cargo. Without any, the peers that take long to build are left out; `bench/smoke.sh --all-features` has
# them all, `bench/smoke.sh --no-default-features` has no Wharf either.
set -euo pipefail
cd "$(dirname "$0")"

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cargo_options=("$@")
[[ $# -gt 0 ]] || cargo_options=(--no-default-features --features http)
bench() { cargo run --quiet "${cargo_options[@]}" -- "$@"; }
# A peer that fails does not end a comparison; here it shall.
none_failed() { if grep failed: "$1"; then return 1; fi; }

cargo fmt --check
cargo test --quiet "${cargo_options[@]}"

bench all --quick --rounds 1 --messages 300 --plot "$out/all.svg" --json "$out/all.json" | tee "$out/all.txt"
none_failed "$out/all.txt"
bench show "$out/all.json" --base bare_epoll --plot "$out/show.svg" >"$out/show.txt"
[[ -s $out/all.svg && -s $out/show.svg && -s $out/show.txt ]]

for pin in separate none; do
    bench compare --rounds 1 --messages 200 --connections 1,70 --size 64,16384 --depth 1,4 --second-thread \
        --pin "$pin" --plot "$out/plot.svg" >"$out/compare.txt"
    none_failed "$out/compare.txt"
done

bench tls --rounds 1 --messages 200 --connections 1,3 --idle 40 --plot "$out/tls.svg" --json "$out/tls.json" \
    | tee "$out/tls.txt"
none_failed "$out/tls.txt"
bench show "$out/tls.json" --plot "$out/show.svg" >"$out/show.txt"

bench relay --rounds 1 --messages 200 --connections 1,3 --plot "$out/relay.svg" --json "$out/relay.json" \
    | tee "$out/relay.txt"
none_failed <(grep -v "haproxy is not installed" "$out/relay.txt")

bench tasks --rounds 1 --wakes 2000

if bench peers | grep -q ^wharf_event; then
    bench hostile --quick --json "$out/hostile.json"
    [[ -s $out/hostile.json ]]
fi

if bench --help | grep -q "^  http " && command -v wrk >/dev/null; then
    bench http --rounds 1 --seconds 1 --threads 1 --connections 4
fi

# Those that answer message by message want them of one size, and c10k speaks no TLS and has no server for a relay.
for peer in $(bench peers | cut -d' ' -f1 | grep -v -e _message -e tls -e relay); do
    bench c10k --peer "$peer" --connections 300 --hold 0.1
done
if bench c10k --to 127.0.0.1:1 --connections 3; then
    echo "c10k is content with a server that is not there" >&2
    exit 1
fi
echo "smoke: all parts ran"
