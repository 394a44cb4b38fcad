"""What is written to stdout, to the character."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from fsdtool.report.console import Format, render, resolve_format

NAN, INF = float("nan"), float("inf")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def written(rows, columns, format, stream=None, **options) -> str:
    stream = stream or io.StringIO()
    render(rows, columns, format, stream, **options)
    return stream.getvalue()


def test_format_is_a_table_on_a_terminal_and_csv_in_a_pipe():
    assert resolve_format(None, Terminal()) is Format.table
    assert resolve_format(None, io.StringIO()) is Format.csv
    assert resolve_format(Format.json, Terminal()) is Format.json


# csv


def test_csv_keeps_the_columns_in_order_and_leaves_out_the_others():
    rows = [{"b": 2, "a": 1, "c": 3}, {"a": 4}]
    assert written(rows, ["a", "b"], Format.csv) == "a,b\n1,2\n4,\n"


def test_csv_quotes_as_rfc_4180():
    rows = [
        {"a": 'say "no"', "b": "x,y"},
        {"a": "two\nlines", "b": "carriage\rreturn"},
        {"a": " blank ", "b": ""},
    ]
    expected = 'a,b\n"say ""no""","x,y"\n"two\nlines","carriage\rreturn"\n blank ,\n'
    assert written(rows, ["a", "b"], Format.csv) == expected


def test_csv_cell_that_ends_in_a_line_break_is_read_back():
    text = "ends\r\n"
    back = list(csv.reader(io.StringIO(written([{"a": 1, "b": text}], ["a", "b"], Format.csv), newline="")))
    assert back == [["a", "b"], ["1", text]]


@pytest.mark.parametrize("text", ["=1+1", "+1+cmd", "-1-1", "-", "+", "-2e", "@SUM(A1)", "\uff1d1+1", "-١"])
def test_csv_disarms_formulas_in_text(text):
    assert written([{"a": text}], ["a"], Format.csv) == f"a\n'{text}\n"


def test_csv_disarms_a_leading_tab_and_carriage_return():
    assert written([{"a": "\t=1"}, {"a": "\r=1"}], ["a"], Format.csv) == "a\n'\t=1\n\"'\r=1\"\n"


def test_csv_leaves_negative_numbers_alone():
    assert written([{"a": -1, "b": -0.5}], ["a", "b"], Format.csv) == "a,b\n-1,-0.5\n"


@pytest.mark.parametrize("text", ["-1", "+1", "-0.5", "+1.", "-.5", "-1e-07", "+2E3", "1-2", "a=b", "'1", "'-1"])
def test_csv_leaves_numbers_in_text_and_harmless_text_alone(text):
    assert written([{"a": text}], ["a"], Format.csv) == f"a\n{text}\n"


def test_only_csv_disarms_formulas():
    assert json.loads(written([{"a": "=1"}], ["a"], Format.json)) == [{"a": "=1"}]
    assert json.loads(written([{"a": "=1"}], ["a"], Format.jsonl)) == {"a": "=1"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        (np.float32(0.1), "0.1"),
        (1 / 3, "0.3333333"),
        (np.float64(123456.75), "123456.8"),
        (1e-12, "1e-12"),
        (2.0, "2"),
        (-0.0, "0"),
        (NAN, "nan"),
        (INF, "inf"),
        (-INF, "-inf"),
        (None, ""),
        (True, "true"),
        (np.int64(7), "7"),
        (2**60, "1152921504606846976"),
        (np.str_("cat"), "cat"),
    ],
)
def test_csv_values(value, text):
    assert written([{"x": "x", "a": value}], ["x", "a"], Format.csv) == f"x,a\nx,{text}\n"


def test_csv_keeps_unicode():
    assert written([{"a": "Ünï 漢字 🐈"}], ["a"], Format.csv) == "a\nÜnï 漢字 🐈\n"


def test_csv_of_no_rows_is_the_header():
    assert written([], ["a", "b"], Format.csv) == "a,b\n"


# json and jsonl


def test_json_is_one_array():
    rows = [{"a": "é", "b": 0.25}, {"a": None, "b": 3}]
    assert written(rows, ["a", "b"], Format.json) == '[\n{"a": "é", "b": 0.25},\n{"a": null, "b": 3}\n]\n'


def test_json_of_no_rows_is_an_empty_array():
    assert written([], ["a"], Format.json) == "[]\n"


def test_jsonl_is_one_object_per_line():
    rows = [{"a": 'line\nbreak "q"'}, {"a": True}]
    assert written(rows, ["a"], Format.jsonl) == '{"a": "line\\nbreak \\"q\\""}\n{"a": true}\n'


def test_jsonl_of_no_rows_is_empty():
    assert written([], ["a"], Format.jsonl) == ""


def test_json_has_null_for_what_is_no_number():
    row = {"a": NAN, "b": INF, "c": np.float32("-inf"), "d": -0.0}
    assert written([row], list("abcd"), Format.jsonl) == '{"a": null, "b": null, "c": null, "d": 0.0}\n'


def test_json_does_not_disarm_text():
    assert written([{"a": "=1"}], ["a"], Format.jsonl) == '{"a": "=1"}\n'


def test_json_and_csv_hold_the_same_number():
    value = np.float32(0.123456789)
    from_csv = float(written([{"a": value}], ["a"], Format.csv).splitlines()[1])
    assert json.loads(written([{"a": value}], ["a"], Format.json)) == [{"a": from_csv}]


@pytest.mark.parametrize("format", [Format.csv, Format.json, Format.jsonl])
def test_machine_formats_write_each_row_as_it_comes(format):
    stream = io.StringIO()

    def rows():
        yield {"a": "first"}
        assert "first" in stream.getvalue()
        yield {"a": "second"}

    render(rows(), ["a"], format, stream)
    assert "second" in stream.getvalue()


@pytest.mark.parametrize("format", [Format.csv, Format.json, Format.jsonl])
def test_machine_formats_have_no_title_no_colour_and_no_wrapping_on_a_terminal(format):
    text = written([{"a": "x" * 500}], ["a"], format, Terminal(), title="Title")
    assert "\x1b" not in text
    assert "Title" not in text
    assert "x" * 500 in text


# table


def test_table_aligns_numbers_right_and_text_left():
    rows = [{"id": "a.png", "score": 1.5, "rank": 1}, {"id": "long name.png", "score": None, "rank": 10}]
    assert written(rows, ["id", "score", "rank"], Format.table, title="Suspects").splitlines() == [
        "Suspects",
        "id             score  rank",
        "a.png            1.5     1",
        "long name.png           10",
    ]


def test_table_shows_text_as_it_is():
    text = written([{"a": "[red]x[/red] :smile:"}], ["a"], Format.table)
    assert text.splitlines()[1].rstrip() == "[red]x[/red] :smile:"


def test_table_holds_no_escape_sequence_from_a_file():
    assert "\x1b" not in written([{"a": "\x1b[2Jgone\nline"}], ["a"], Format.table)


def test_table_in_a_pipe_is_as_wide_as_it_needs():
    lines = written([{"a": "x" * 300, "b": 1}], ["a", "b"], Format.table).splitlines()
    assert lines[1] == "x" * 300 + "  1"


def test_table_on_a_narrow_terminal_folds_text_and_loses_none(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = written([{"a": "x" * 90, "b": 123456}], ["a", "b"], Format.table, Terminal())
    assert text.count("x") == 90
    assert "123456" in text


def test_table_is_coloured_on_a_terminal_only_and_not_with_no_color(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in written([{"a": 1}], ["a"], Format.table, Terminal())
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in written([{"a": 1}], ["a"], Format.table)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in written([{"a": 1}], ["a"], Format.table, Terminal())
