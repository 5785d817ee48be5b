#!/usr/bin/env bash
. "$(dirname "$0")/../common.sh"
# Surroundings that are unusual and no fault: a run trains in all of them.
base
nameless() { unshare --user --map-user=54321 --map-group=54321 "$@"; }
nameless true 2>/dev/null || nameless() { "$@"; }  # no user namespaces here
echo "uid without a name, no HOME, no TMPDIR, 40 open files: $( (ulimit -n 40; nameless env -i PATH=/usr/bin:/bin PYTHONPATH="$PYTHONPATH" TMPDIR=/nonexistent $FRESH_AD train tiny.yaml --out u --device cpu 2>&1 | tail -1) )"
echo "ASCII locale, WORLD_SIZE=1 RANK=0 alone: $(env RANK=0 WORLD_SIZE=1 PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LC_ALL=C $AD train tiny.yaml --out 'läuf 1' --device cpu 2>&1 | tail -1)"
mkdir -p blobs snap/x; for f in train.rec train.idx property; do cp base/$f blobs/$f; ln -s ../../blobs/$f snap/x/$f; done; echo "links as in the Hub's cache: $($AD data inspect snap/x/train.rec | grep -E 'index  ')"
mkdir em; cp base/* em; echo "folder instead of file: $($AD train tiny.yaml data.records=em --dry-run --device cpu | grep -m1 'to train from that')"
