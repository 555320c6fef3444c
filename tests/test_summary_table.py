"""What is printed of a summary, and what a notebook shows."""

from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparseprune as sp
from sparseprune._summary import Summary, SummaryRow, Unpruned
from sparseprune._summary.table import NAME, rounded, shortened

LONG = "bert.encoder.layer.{}.attention.self.{}.weight"


TIMES = "sparse 1.2 ms, dense 3.4 ms a step"


def row(name: str, choice: str = TIMES, computes: str = "sparse") -> SummaryRow:
    return SummaryRow(name, (768, 3072), 2_359_296, 235_930, "1x1", 23_592_960, 2_000_000, computes, choice)


def printed(summary: Summary, columns: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    return str(summary).split("\n")


def test_a_transformer_fits_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(LONG.format(i, name)) for i in range(2) for name in ("query", "value")]
    unpruned = [Unpruned("Embedding", 23_440_896, 93_763_584)]
    assert printed(Summary([*rows, row("classifier.weight")], None, unpruned), 200, monkeypatch) == [
        "layer                                shape     block        kept  sparsity   FLOPs   bytes  "
        "computes",
        "----------------------------------------------------------------------------------------------------",
        "b.e.l.0.attention.self.query.weight  768x3072  1x1       235,930    90.00%  23.6 M     2 M  sparse",
        "b.e.l.0.attention.self.value.weight  768x3072  1x1       235,930    90.00%  23.6 M     2 M  sparse",
        "b.e.l.1.attention.self.query.weight  768x3072  1x1       235,930    90.00%  23.6 M     2 M  sparse",
        "b.e.l.1.attention.self.value.weight  768x3072  1x1       235,930    90.00%  23.6 M     2 M  sparse",
        "classifier.weight                    768x3072  1x1       235,930    90.00%  23.6 M     2 M  sparse",
        "----------------------------------------------------------------------------------------------------",
        "total                                                  1,179,650    90.00%   118 M    10 M",
        "not prunable                                          23,440,896     0.00%          93.8 M",
        "model                                                 24,620,546    30.13%           104 M",
        "not prunable: Embedding 23,440,896",
        f"why layers compute as they do: {TIMES}",
        "no room for weights: to_dict() has all",
    ]


@given(
    names=st.lists(st.text("abc.0é<&", max_size=120), max_size=5),
    choice=st.sampled_from(["", "asked for", "sparse 1 ms, dense 2 ms a step"]),
    columns=st.integers(58, 300),
    paths=st.sampled_from([None, "", "no paths can be followed through " + "x" * 90]),
    large=st.integers(0, 10**13),
)
def test_whatever_is_printed_fits(
    names: list[str], choice: str, columns: int, paths: str | None, large: int
) -> None:
    rows = [
        SummaryRow(f"x{name}", (512, 64, 3, 3), 2**31, large % 2**31, "16x1", large, large, "sparse", choice)
        for name in names
    ]
    summary = Summary(rows, paths, [Unpruned("shared by " + ", ".join(names), large, large)])
    with pytest.MonkeyPatch.context() as patch:
        lines = printed(summary, columns, patch)
    assert max(map(len, lines)) <= min(columns, 100)
    assert all("%" in line for line in lines[2 : 2 + len(rows)])


def test_names_keep_what_tells_them_apart() -> None:
    names = [LONG.format(i, name) for i in (0, 11) for name in ("query", "key")] + ["pooler.dense.weight"]
    assert shortened(names, 49) == names
    assert shortened(names, 36) == [
        "b.e.l.0.attention.self.query.weight",
        "b.e.l.0.attention.self.key.weight",
        "b.e.l.11.attention.self.query.weight",
        "b.e.l.11.attention.self.key.weight",
        "pooler.dense.weight",
    ]
    assert shortened(["0." + "a" * 50 + "bc"], 10) == ["0.a…aaaabc"]


@given(st.lists(st.text("ab.01", min_size=1, max_size=60), max_size=6), st.integers(12, 60))
def test_shortened_names_fit(names: list[str], width: int) -> None:
    short = shortened(names, width)
    assert len(short) == len(names)
    for one, name in zip(short, names, strict=True):
        assert len(one) <= width
        assert len(name) > NAME or width < NAME or one == name or len(name) > width


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (None, "-"),
        (0, "0"),
        (9_999, "9,999"),
        (10_000, "10 k"),
        (999_499, "999 k"),
        (999_501, "1 M"),
        (23_592_960, "23.6 M"),
        (1_811_939_328, "1.81 G"),
        (2 * 10**18, "2 E"),
    ],
)
def test_large_numbers_have_three_digits(n: int | None, text: str) -> None:
    assert rounded(n) == text


def test_what_slows_layers_down_is_in_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = [row(LONG.format(i, "key"), "", "sparse (circular padding by a copy)") for i in range(2)]
    lines = printed(Summary([*slow, row("0.weight")]), 90, monkeypatch)
    assert "sparse (circular padding by a copy): 2 layers" in lines
    assert lines[2].endswith("  sparse")


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_a_notebook_shows_all_of_it() -> None:
    model = nn.Sequential(nn.Linear(100, 20), nn.Linear(20, 3))
    sparse = sp.sparsify(model, {"0.weight": torch.eye(20, 100).bool()}, layers="dense")
    summary = sp.summary(sparse, input_size=(100,))
    shown = summary._repr_html_()
    cells = Cells()
    cells.feed(shown)
    assert cells.open == []
    assert [line[0] for line in cells.rows] == [
        *("layer", "0.weight", "1.weight", "total", "not prunable", "model")
    ]
    assert {len(line) for line in cells.rows} == {11}
    assert cells.rows[1][3:6] == ["2,000", "20", "99.00%"]
    assert cells.rows[1][-1] == "dense, masked (asked for)"
    assert "effective sparsity" in shown
    assert "not prunable: bias 23" in shown


def test_a_notebook_gets_no_markup_of_names() -> None:
    shown = Summary([row("<b>&amp;")])._repr_html_()
    assert "<b>" not in shown
    assert "&lt;b&gt;&amp;amp;" in shown
