#!/usr/bin/env bash
# What is asked of one GPU: benchmarks/on_gpu.sh [SECONDS]    (1500: 25 minutes)
#
# The test suite, the benchmark in four precisions, profiles of training steps and the first experiments of the
# reproduction, five epochs each. Each part writes to $OUT (output/gpu) as it goes on. A part that is done, which
# $OUT/NAME.done says, is skipped by a later call. A part that fails, or takes longer than its limit, does not stop
# the others. PYTHON names the interpreter.
# Exit code: 0 all is done, 1 a part failed, 2 none failed but the time is over: call it again.
set -u
cd "$(dirname "$0")/.." || exit 1
budget=${1:-1500} out=${OUT:-output/gpu} python=${PYTHON:-python} failed=0 left=0
mkdir -p "$out" || exit 1

part() {  # NAME LIMIT ARGUMENT...: the interpreter with these arguments, for so many seconds at most
  local name=$1 limit=$2 rest=$((budget - SECONDS)) code=0
  shift 2
  if [ -e "$out/$name.done" ]; then echo "$name: done already"; return; fi
  if ((rest <= 0)); then left=1; echo "$name: no time left"; return; fi
  timeout -k 30 $((limit < rest ? limit : rest)) "$python" "$@" >"$out/$name.log" 2>&1 || code=$?
  if ((code == 0)); then touch "$out/$name.done"; echo "$name: done"; return; fi
  if (((code == 124 || code == 137) && rest <= limit)); then left=1; echo "$name: stopped, the time is over"; return; fi
  failed=1
  echo "$name: FAILED with code $code (124, 137: longer than $limit s), see $out/$name.log"
}

benchmark() {  # NAME LIMIT ARGUMENT...
  part "$1" "$2" tools/benchmark.py --device cuda --output "$out/$1.json" "${@:3}"
}

part tests 420 -m pytest -q
benchmark float32 240 all --dtype float32 --detector-batch 4 --time-budget 1.5
benchmark tf32 240 all --dtype tf32 --detector-batch 4 --time-budget 1.5
benchmark bf16 240 all --dtype bfloat16 --channels-last --time-budget 1.5
benchmark fp16 240 all --dtype float16 --channels-last --time-budget 1.5
benchmark profile 120 profile --dtype bfloat16 --channels-last
part reproduction 900 tools/reproduce.py cifar --scale cpu --device cuda --seeds 3
((failed)) && exit 1
((left)) && exit 2
exit 0
