#!/bin/sh
# Runs the heat equation on 4 ranks, kills one of them on the way with kill -9, and compares the result with that
# of a run that nobody disturbed. Needs the Rust toolchain and a C compiler.
set -eu
cd "$(dirname "$0")/.."

cargo build --release -p ckpt-launcher -p examples --bin ckpt --example heat
target=${CARGO_TARGET_DIR:-target}/release
folder=$(mktemp -d)
job=
trap '[ -z "$job" ] || kill $job 2>/dev/null; rm -rf "$folder"' EXIT
steps=3000

echo "--- heat on 4 ranks, a checkpoint every second, one rank killed"
"$target/ckpt" run -n 4 --every 1s --store "$folder/heat.ckpt" --events "$folder/events" -- \
    "$target/examples/heat" --size 1024x1024 --steps $steps --pause-us 1000 >"$folder/killed" &
job=$!
until grep -q '"event":"committed"' "$folder/events" 2>/dev/null; do
    kill -0 $job || { echo "the job ended before its first checkpoint" >&2; exit 1; }
    sleep 0.1
done
sleep 0.5
victim=$(sed -n 's/.*"event":"start".*"pids":\[[0-9]*,\([0-9]*\).*/\1/p' "$folder/events" | tail -n 1)
echo "--- kill -9 $victim (rank 1)"
kill -9 "$victim"
wait $job
job=
cat "$folder/killed"

echo "--- the same, undisturbed"
"$target/ckpt" run --quiet -n 4 --every off --store "$folder/undisturbed.ckpt" -- \
    "$target/examples/heat" --size 1024x1024 --steps $steps --pause-us 1000 | tee "$folder/undisturbed"

killed=$(grep '^result: ' "$folder/killed")
undisturbed=$(grep '^result: ' "$folder/undisturbed")
if [ "$killed" = "$undisturbed" ]; then
    echo "--- the same bits: ${killed#result: }"
else
    echo "--- different bits: $killed, undisturbed $undisturbed" >&2
    exit 1
fi
