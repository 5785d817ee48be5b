"""Classes that are filtered out of the softmax: against insightface's way of doing it, and what takes no filter."""

from __future__ import annotations

import pytest
import torch
from margin_softmax_cases import ADAFACE, ARCFACE, INSIGHTFACE, assert_close, gradients, make_case

from adadistill.kernels.margin_softmax import ClassShard, margin_softmax, margin_softmax_reference

ABOVE = 0.3


def test_logits_of_other_classes_above_the_bound_become_0_as_insightface_multiplies_them():
    case = make_case(24, 85)
    logits = case.embeddings @ case.centres.T
    others = torch.ones_like(logits).scatter_(1, case.labels[:, None], 0.0)
    dirty = (logits > ABOVE).double() * others
    assert dirty.sum() > 50
    logits = logits * (1.0 - dirty)
    logits[torch.arange(24), case.labels] -= 0.35
    expected = torch.nn.functional.cross_entropy(64.0 * logits, case.labels, reduction="none")
    found = margin_softmax(
        case.embeddings,
        case.centres,
        case.labels,
        torch.zeros(24),
        torch.full((24,), 0.35),
        filter_above=ABOVE,
        **ARCFACE,
    )
    assert_close(found.loss, expected, relative=1e-6)


@pytest.mark.parametrize("trained", [False, True], ids=["fixed", "trained"])
@pytest.mark.parametrize("options", [ADAFACE, ARCFACE, INSIGHTFACE], ids=["adaface", "arcface", "insightface"])
def test_the_chunked_form_equals_the_dense_reference(options: dict[str, object], trained: bool):
    case = make_case(24, 85)
    expected, expected_gradients = gradients(
        margin_softmax_reference, case, trained=trained, filter_above=ABOVE, **options
    )
    plain, _ = gradients(margin_softmax_reference, case, trained=trained, **options)
    assert not torch.equal(plain.loss, expected.loss)
    found, found_gradients = gradients(
        margin_softmax, case, trained=trained, filter_above=ABOVE, chunk_classes=16, **options
    )
    assert_close(found.loss, expected.loss)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        assert_close(one, other)


def test_a_shard_filters_its_own_classes():
    case = make_case(6, 9)
    alone = ClassShard(first_class=0, num_classes=9, all_reduce=lambda tensor, _: tensor)
    whole = margin_softmax(*case, filter_above=ABOVE, **ARCFACE)
    assert_close(margin_softmax(*case, filter_above=ABOVE, shard=alone, **ARCFACE).loss, whole.loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"filter_above": 0.0}, r"filter_above must be in \(0, 1\], got 0.0"),
     ({"filter_above": 0.5, "form": "chunks"}, "form chunks filters no classes; take form torch")],
)  # fmt: skip
def test_what_takes_no_filter_is_refused(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        margin_softmax(*make_case(3, 4), **{**ARCFACE, **options})
