#!/usr/bin/env bash
# Builds everything here and runs a tiny form of each part, so that none of it rots. Figures from this mean nothing.
# Arguments go to cargo: `bench/smoke.sh --no-default-features` leaves Wharf out.
set -euo pipefail
cd "$(dirname "$0")"

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
bench() { cargo run --quiet "${cargo_options[@]}" -- "$@"; }
cargo_options=("$@")

cargo fmt --check
cargo test --quiet "$@"

for pin in same separate none; do
    bench compare --rounds 1 --messages 200 --connections 1,70 --size 64,16384 --depth 1,4 \
        --pin "$pin" --plot "$out/plot.svg" --json "$out/samples.json"
done
[[ -s $out/plot.svg && -s $out/samples.json ]]

bench tasks --rounds 1 --wakes 2000

for peer in $(bench peers | cut -d' ' -f1); do
    bench c10k --peer "$peer" --connections 300 --hold 0.1
done
if bench c10k --to 127.0.0.1:1 --connections 3; then
    echo "c10k is content with a server that is not there" >&2
    exit 1
fi
echo "smoke: all parts ran"
