import json

import pandas
import pytest
import typer

from bench import results_file, tables
from bench.report.markdown import factor, fill, pipe, spread, two_digits
from bench.report.tables import TABLES
from bench.report.tables.registry import RESULTS
from bench.rows import OK, UNAVAILABLE, speedup

RUNS = sorted(RESULTS.glob("*.jsonl"))


@pytest.mark.parametrize(
    ("value", "text"), [(0.4863, "0.49"), (0.701, "0.70"), (1.0, "1.0"), (9.96, "10"), (16.06, "16")]
)
def test_factors_have_two_digits(value, text):
    assert two_digits(value) == text
    assert factor(value) == f"{text}×"
    assert factor(None) == ""


def test_spread_of_one_number_is_the_number():
    assert spread(pandas.Series([0.88, 0.90]), 100) == "89.00 ± 1.41"
    assert spread(pandas.Series([0.89]), 100, 1) == "89.0"


def test_pipe_aligns_texts_left_and_figures_right_and_leaves_them_as_they_are():
    assert pipe(["a", "b", "c"], [["x", "1.50", "why"]], last_is_text=True).splitlines() == [
        "| a   |    b | c   |",
        "|:----|-----:|:----|",
        "| x   | 1.50 | why |",
    ]


def test_fill_replaces_the_tables_that_it_knows():
    text = "a\n<!-- table: one -->\nold\n<!-- /table -->\nb\n<!-- table: two -->\nold\n<!-- /table -->\n"
    filled = fill(text, {"one": "new\n"}.get)
    assert filled == text.replace("old", "\nnew\n", 1)
    assert fill(filled, {"one": "new\n"}.get) == filled


@pytest.mark.parametrize("name", TABLES)
def test_every_table_can_be_made_of_the_committed_results(name):
    lines = TABLES[name]().splitlines()
    if lines[0].startswith(("Not run yet: `python", "Not measured yet: `python")):
        return
    table = [line for line in lines if line.startswith("|")]
    assert len(table) > 2
    assert "nan" not in "".join(lines)


def test_headline_fits_a_first_screen_and_names_a_loss():
    *table, empty, machine = TABLES["headline"]().splitlines()
    assert len(table) - 2 <= 8
    assert empty == ""
    assert "2 threads" in machine
    assert "0.84×" in table[-1]


def test_tables_of_the_documents_are_up_to_date(capsys):
    tables.main(None, check=True)
    assert capsys.readouterr().out == ""


def test_check_names_stale_tables_and_writing_makes_them_fresh(tmp_path, capsys):
    file = tmp_path / "page.md"
    file.write_text("Words.\n\n<!-- table: gpu-model -->\nby hand\n<!-- /table -->\n\nMore.\n")
    with pytest.raises(typer.Exit) as caught:
        tables.main([file], check=True)
    assert caught.value.exit_code == 1
    assert f"{file}: gpu-model is stale" in capsys.readouterr().out
    assert "by hand" in file.read_text()
    tables.main([file])
    tables.main([file], check=True)
    text = file.read_text()
    assert text.startswith("Words.\n\n<!-- table: gpu-model -->\n\n| batch")
    assert text.endswith("<!-- /table -->\n\nMore.\n")


def test_a_table_that_does_not_exist_is_refused_with_a_hint(tmp_path):
    file = tmp_path / "page.md"
    file.write_text("<!-- table: head-line -->\n<!-- /table -->\n")
    with pytest.raises(typer.BadParameter, match="no table 'head-line'; did you mean 'headline'"):
        tables.main([file])


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.stem)
def test_results_written_before_still_load(file):
    results = results_file.read(file)
    assert results.header["contender"] in ("sparseprune-avx512", "sparseprune-avx2")
    assert len({row.id for row in results.rows}) == len(results.rows) > 20
    assert {row.status for row in results.rows} <= {OK, UNAVAILABLE}
    assert {target["verdict"] for target in results.targets} <= {"met", "missed", "not measured"}
    own = [row for row in results.rows if row.contender == results.header["contender"]]
    assert any(speedup(row) for row in own)
    again = results_file.parse(
        json.loads(results_file.json_line("row", row.to_dict())) for row in results.rows[:3]
    )
    assert again.rows == results.rows[:3]
