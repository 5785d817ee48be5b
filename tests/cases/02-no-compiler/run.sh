#!/usr/bin/env bash
. "$(dirname "$0")/../common.sh"
# A container without gcc (python:3.x-slim, pytorch's runtime image): compile is asked for.
base; mkdir bin; for t in env sh bash cat ls uname git python3; do ln -s "$(command -v $t)" bin/ 2>/dev/null; done; ln -sf "$PY" bin/python3
E="env -i HOME=$W PATH=$W/bin TORCHINDUCTOR_CACHE_DIR=$W/ind PYTHONPATH=$PYTHONPATH"
$E $AD train tiny.yaml compile=default --out r --device cpu --dry-run | tail -1
$E $AD train tiny.yaml compile=default --out r --device cpu > log 2>&1; echo "rc=$?  lines of output: $(wc -l < log)"; grep -E "^[A-Za-z_.]+(Error|Exception)|Traceback" log
$E $AD train tiny.yaml compile=off --out r --device cpu 2>&1 | tail -1
