"""The fields of a cache's header that no other store has: embeddings, views, teacher."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cache import TEACHER, signed, small_header
from small_stores import content_of

from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.teacher_cache import MIRRORED, PLAIN, CacheHeader, CacheView

AUGMENTED = CacheView(kind="augmented", seed=3, view=0, policy='{"crop":0.2}')


@settings(max_examples=10)
@given(
    built=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.lists(st.floats(-1, 1), max_size=3),
        max_size=4,
    ),
    records=st.integers(1, 10**9),
    block=st.integers(2048, 4096),
)
def test_any_header_is_read_back_as_it_was(built, records, block):
    header = small_header(num_records=records, block_records=block, built=built, views=(PLAIN, MIRRORED, AUGMENTED))
    assert CacheHeader.from_bytes(header.to_bytes()) == header


def test_sizes_follow_from_the_fields():
    header = small_header()
    assert (header.num_views, header.num_blocks, header.record_bytes, header.data_bytes) == (2, 5, 32, 23 * 32)
    assert header.block_record_range(4) == range(20, 23)
    assert header.block_spans(4) == (("embeddings.bin", range(640, 736)),)
    assert small_header(num_records=25).block_record_range(4) == range(20, 25)
    assert small_header(num_records=1, block_records=100).num_blocks == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"embedding_dim": (1 << 16) + 1}, "embedding_dim"),
        ({"num_records": 1 << 21, "block_records": 1}, "take larger blocks"),
        ({"num_records": 1 << 27, "block_records": 1 << 27}, "take smaller blocks"),
        ({"views": ()}, "1 to 1024 views, got 0"),
        ({"views": (AUGMENTED, PLAIN, AUGMENTED)}, "views 0 and 2 are the same: augmented view 0 of seed 3"),
        ({"views": ("plain",)}, "CacheViews"),
        ({"teacher": {"name": "x"}}, "teacher.sha256"),
        ({"teacher": TEACHER | {"embedding_dim": 16}}, r"teacher.embedding_dim must be embedding_dim \(8\), got 16"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused_with_its_reason(changes, reason):
    with pytest.raises(ValueError, match=reason):
        small_header(**changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "float32"}, "dtype is 'float32'"),
        ({"views": {}}, "views must be a list"),
        ({"views": [{"kind": "plain", "angle": 3}]}, "a view has kind"),
        ({"views": [{"kind": "rotated"}]}, "kind of a view"),
        ({"views": [{"kind": "plain", "seed": 1}]}, "a plain view has no seed"),
        ({"views": [{"kind": "augmented", "seed": 1}]}, "needs seed, view and policy"),
        ({"views": [{"kind": "augmented", "seed": -1, "view": 0, "policy": "{}"}]}, "seed of a view"),
        ({"views": [{"kind": "augmented", "seed": 1, "view": 1, "policy": {}}]}, "policy of a view"),
    ],
)
def test_a_sound_file_that_describes_no_cache_is_refused_with_its_reason(changes, reason):
    with pytest.raises(StoreError, match=reason):
        CacheHeader.from_bytes(signed(content_of(small_header(), **changes)))


def test_views_are_told_apart_by_every_field():
    views = {
        PLAIN, MIRRORED, AUGMENTED, replace(AUGMENTED, seed=4), replace(AUGMENTED, view=1),
        replace(AUGMENTED, policy="{}"),
    }  # fmt: skip
    assert small_header(views=tuple(views)).num_views == 6
    lines = small_header().differences(small_header(views=(PLAIN,), teacher=TEACHER | {"sha256": "99" * 32}))
    assert len(lines) == 2
    assert lines[0].startswith("views: ")
    assert lines[1] == f"teacher.sha256: '{'ab' * 32}' stored, '{'99' * 32}' wanted"
