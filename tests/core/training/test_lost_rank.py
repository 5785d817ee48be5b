"""A rank whose partner was killed says so, instead of what the transport felt."""

from __future__ import annotations

import pytest

from adadistill.core import distributed
from adadistill.core.checkpoints import CheckpointError
from adadistill.core.distributed import LostRankError, distributed_session

GLOO = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:28551. This is typically caused by a"


@pytest.fixture(autouse=True)
def _two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of one rank of two, without the other."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: None)


def test_a_connection_that_a_killed_rank_closed_is_a_lost_rank():
    with pytest.raises(LostRankError, match=r"rank 0 of 2 lost another rank.*--resume auto") as caught:  # noqa: SIM117
        with distributed_session("cpu"):
            raise RuntimeError(GLOO)
    assert str(caught.value.__cause__) == GLOO


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), CheckpointError("checkpoint of step 3: Broken pipe")])
def test_other_errors_stay_what_they_are(error: RuntimeError):
    with pytest.raises(RuntimeError) as caught:  # noqa: SIM117
        with distributed_session("cpu"):
            raise error
    assert caught.value is error
