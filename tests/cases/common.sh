# Sourced by every case: a new folder to work in, a tiny recipe, and writers of what it reads.
set +e
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd); export PYTHONPATH=$HERE${PYTHONPATH:+:$PYTHONPATH}
AD=${AD:-adadistill}; PY=${PY:-python}; FRESH_AD=${FRESH_AD:-$AD}; FRESH_PY=${FRESH_PY:-$PY}  # with this user and limits
W=$(mktemp -d); cd "$W"; trap 'cd /; chmod -R u+w "$W"; rm -rf "$W"' EXIT
cat > tiny.yaml <<'Y'
name: tiny
seed: 0
data: {records: base/train.rec, global_batch_size: 8, decoder: cpu, workers: 1}
student: {arch: mobilefacenet, width: 0.25, embedding_dim: 32}
head: {kind: arcface, margin: 0.3, logit_scale: 24.0}
centres: {kind: trainable}
optim: {lr: 0.05, lr_batch_size: 8, epochs: 1}
checkpoint: {every_epochs: 1, keep: 2}
log: {every: 1}
Y
base() { $PY - <<'P'
from lib import *
recs=[];k=1
for p in range(8):
    for i in range(6): recs.append((k,packed([p,1.0],k,face(k,p)))); k+=1
first=k
for p in range(8): recs.append((k,packed([1+6*p,7+6*p],k,b""))); k+=1
recs.append((0,packed([first,k],0,b"")))
write_rec("base",recs,property_text="8,112,112\n")
P
}
pairs() { $PY - "$1" <<'P'
import pickle,sys,numpy as np
from lib import face
r=np.random.default_rng(1); ims=[]; fl=[True,False]*15
for f in fl:
    p,q=r.choice(50,2,replace=False)
    ims+=[face(int(r.integers(1e6)),int(p)),face(int(r.integers(1e6)),int(p if f else q))]
pickle.dump((ims,fl),open(sys.argv[1],"wb"),protocol=4)
P
}
# A user without privileges, to whom file permissions apply, also where this is root.
plain_user() { if [ "$(id -u)" = 0 ]; then setpriv --bounding-set=-all --inh-caps=-all "$@"; else "$@"; fi; }
