#!/bin/sh
# Check the trainer on a machine with one GPU, in less than five minutes: benchmarks/gpu_check.sh [--cpu]
#
# Runs small trainings through the launcher: what PyTorch sees, bf16, torch.compile, activation checkpointing, batches in
# parts and clipping. Then it prints the throughput against a bare loop. `--cpu` runs the same on the CPU, compiling
# with aot_eager instead of inductor, which shows only that this script works. PYTHON names the interpreter (default: the project's .venv), OUT a directory for the logs.
set -eu

cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
OUT=${OUT:-$(mktemp -d)}
case "${1:-}" in
--cpu) export ACCELERATE_USE_CPU=true BACKEND=aot_eager ;;
"") unset ACCELERATE_USE_CPU || true && BACKEND=inductor ;;
*) echo "usage: benchmarks/gpu_check.sh [--cpu]" >&2 && exit 2 ;;
esac

failed=0
check() { # NAME COMMAND...
    name=$1 && shift
    if "$@" >"$OUT/$name.log" 2>&1; then
        echo "ok     $name"
        grep -hE "samples/s|sees|mixed precision" "$OUT/$name.log" | sed 's/^/       /' || true
    else
        failed=$((failed + 1))
        echo "FAILED $name: $(tail -n 1 "$OUT/$name.log")"
    fi
}

check devices "$PYTHON" -m benchmarks.gpu_job devices
check bf16 "$PYTHON" -m benchmarks.gpu_job train --mixed_precision bf16
check compile "$PYTHON" -m benchmarks.gpu_job train --mixed_precision bf16 --dynamo_backend "$BACKEND"
check memory "$PYTHON" -m benchmarks.gpu_job train --mixed_precision bf16 \
    --fsdp_activation_checkpointing true --gradient_accumulation_steps 2 --gradient_clipping 1.0
check throughput "$PYTHON" -m benchmarks --small trainer
if [ "${1:-}" = "--cpu" ]; then
    echo "This ran on the CPU, so it says nothing about GPUs."
else
    "$PYTHON" -m benchmarks trainer
fi
echo "logs: $OUT"
exit "$failed"
