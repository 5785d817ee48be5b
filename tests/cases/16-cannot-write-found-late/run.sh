#!/usr/bin/env bash
. "$(dirname "$0")/../common.sh"
# Folders that this user may not write: found before the work, not after it.
base; pairs v.bin; $AD train tiny.yaml --out n --device cpu > /dev/null 2>&1; chmod -R a-w "$W"
plain_user $FRESH_PY -c 'from adadistill.recipes.cli import main
main(["evaluate", "n", "--sets", "v.bin", "--device", "cpu"]); main(["data", "verify", "base/train.rec", "--decode", "--seal"])' 2>&1
