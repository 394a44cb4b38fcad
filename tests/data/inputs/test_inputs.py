"""Several inputs: how they are named, packed and handed over."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fsdtool.data.inputs.handing import fitting_names, hand_over, handing, readings
from fsdtool.data.inputs.items import several, split_item
from fsdtool.data.inputs.keys import named_inputs, tokens_among
from fsdtool.data.inputs.packing import check_whole, packed, part_of
from fsdtool.data.inputs.part import NUMBERS, TRUTH, UNUSED, WHOLE, Part
from fsdtool.data.preprocessing import Preprocessing
from fsdtool.errors import DataError

PARTS = (
    Part("ids", "", (4,), WHOLE),
    Part("mask", "mask", (2, 2), TRUTH),
    Part("age", "age", (), NUMBERS),
    Part("row", "row", (), UNUSED),
)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, []),
        ("ids", []),
        ("a,b", [("", "a"), ("", "b")]),
        ("x=a", [("x", "a")]),
        ("a, y = b", [("", "a"), ("y", "b")]),
    ],
)
def test_names(given, found):
    assert named_inputs(given, ()) == found


def test_names_of_the_summarized_data_count_where_none_are_given():
    assert named_inputs(None, PARTS[:2]) == [("", "ids"), ("mask", "mask")]
    assert named_inputs("x,y", PARTS) == [("", "x"), ("", "y")]
    assert named_inputs("a,b", (), ["a,b"]) == []
    assert named_inputs(None, [Part("", "", (4,), WHOLE)]) == []


def test_tokens():
    assert tokens_among(["labels", "token_type_ids", "input_ids"]) == [
        ("input_ids", "input_ids"),
        ("token_type_ids", "token_type_ids"),
    ]
    assert tokens_among(["attention_mask"]) == []


@pytest.mark.parametrize(
    ("dtype", "shape", "kind"),
    [
        ("int64", (4,), WHOLE),
        ("int8", (4,), WHOLE),
        ("uint8", (4,), WHOLE),
        ("uint8", (4, 4, 3), NUMBERS),
        ("bool", (4,), TRUTH),
        ("float64", (4,), NUMBERS),
    ],
)
def test_what_is_stored_says_what_the_network_gets(dtype, shape, kind):
    assert part_of("x", "", shape, np.dtype(dtype)).dtype == kind


class Seen(nn.Module):
    """Keeps what its forward got."""

    def forward(self, *given, **named):
        self.given, self.named = given, named
        return given[0]


def test_what_is_packed_is_handed_over_as_it_was():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 2**24 + 1, (5, 4))
    mask, age, row = rng.random((5, 2, 2)) > 0.5, rng.random(5, dtype=np.float32), np.arange(5)
    rows = packed([ids, mask, age, row], PARTS, np.arange(5))
    assert rows.shape == (5, 10)
    network = Seen()
    with handing(network, PARTS):
        network(torch.from_numpy(rows))
        network(torch.from_numpy(rows))  # the hook is there once
    assert torch.equal(network.given[0], torch.from_numpy(ids))
    assert {key: value.dtype for key, value in network.named.items()} == {"mask": torch.bool, "age": torch.float32}
    assert torch.equal(network.named["mask"], torch.from_numpy(mask))
    assert torch.equal(network.named["age"], torch.from_numpy(age))
    x = torch.zeros(2, 4)
    assert network(x) is x  # outside of it nothing is done


def test_a_network_that_is_handed_its_inputs_already_stays_so():
    network = Seen()
    assert hand_over(network, ()) is None
    assert hand_over(network, PARTS[:1]) is not None
    assert hand_over(network, PARTS[:1]) is None
    assert network(torch.ones(2, 4)).dtype == torch.int64


def test_pixels_are_scaled_and_bytes_in_a_row_are_not():
    pixels, codes = np.full((2, 3, 3), 255, np.uint8), np.full((2, 3), 7, np.uint8)
    parts = [part_of("pixels", "", (3, 3), pixels.dtype), part_of("codes", "", (3,), codes.dtype)]
    rows = packed([pixels, codes], parts, np.arange(2))
    assert set(rows[:, :9].ravel()) == {1.0}
    assert set(rows[:, 9:].ravel()) == {7.0}


@pytest.mark.parametrize("value", [2**24 + 1, -(2**24) - 1, 1.5, np.nan])
def test_numbers_that_are_not_whole_or_too_large_are_refused(value):
    stored = np.array([[1, 2], [3, value]])
    with pytest.raises(DataError, match=r"example b has .* in 'ids', and its network takes whole numbers"):
        check_whole(stored, np.array(["a", "b"]), "ids")
    check_whole(stored[:1], np.array(["a"]))
    check_whole(np.array([[2**24, -(2**24)]]), np.array(["a"]))


def test_items():
    ids, mask = torch.arange(3), torch.ones(3)
    assert split_item({"input_ids": ids, "label": 2}, None) == ({"input_ids": ids}, 2)
    assert split_item({"x": ids, "kind": 2}, "kind") == ({"x": ids}, 2)
    assert split_item({"x": ids}, None) is None
    assert split_item((ids, mask, 2), None) == ((ids, mask), 2)
    assert split_item((ids, 2), None) == (ids, 2)
    assert split_item((ids,), None) is None
    assert split_item(ids, None) is None
    assert several(ids, [], 0) == []
    assert several([1.0, 2.0], [], 0) == []
    assert several((ids, mask), [], 0) == [("0", "", ids), ("1", "", mask)]
    assert several({"a": ids, "text": "words", "none": None}, [], 0) == [("a", "a", ids)]
    assert several({"a": ids, "b": mask}, [("x", "b"), ("a", "other")], 0) == [("b", "x", mask), ("other", "a", ids)]
    with pytest.raises(DataError, match="example 9 has no input 'c'; it has a, b"):
        several({"a": ids, "b": mask}, [("", "c")], 9)


def test_what_a_network_may_take():
    class Named(nn.Module):
        def forward(self, ids, mask=None): ...

    assert [part.dtype for part in fitting_names(Named(), PARTS)] == [WHOLE, TRUTH, UNUSED, UNUSED]
    assert fitting_names(Seen(), PARTS) == PARTS
    assert [(p.dtype, p.shape) for p in readings(Part("k", "", (), WHOLE))] == [
        (WHOLE, ()),
        (NUMBERS, ()),
        (NUMBERS, (1,)),
    ]
    assert [p.dtype for p in readings(PARTS[0])] == [WHOLE, NUMBERS]
    assert readings(PARTS[1]) == (PARTS[1],)


def test_parts_are_a_part_of_the_preprocessing():
    kept = Preprocessing(layout="as is", parts=PARTS)
    assert Preprocessing.from_json(kept.to_json()) == kept
    broken = kept.to_json()
    broken["parts"][0]["dtype"] = "object"
    with pytest.raises(DataError, match="stored preprocessing cannot be read"):
        Preprocessing.from_json(broken)
