"""bench.ledger: rows are found again, a killed write does no harm, and a spoilt file is told."""

import filelock
import pytest

from bench.ledger import Ledger, read


def test_ledger_finds_rows_again(tmp_path):
    file = tmp_path / "folder" / "runs.jsonl"
    with Ledger(file) as ledger:
        assert ledger.get({"seed": 0}) is None
        assert ledger.add({"seed": 0, "block": (4, 1)}, {"accuracy": 0.5}) == {"accuracy": 0.5}
    with Ledger(file) as ledger:
        assert ledger.get({"block": [4, 1], "seed": 0}) == {"accuracy": 0.5}
        assert ledger.get({"seed": 0}) is None
        ledger.add({"seed": 1}, {"accuracy": 0.6})
    assert [row["result"]["accuracy"] for row in read(file)] == [0.5, 0.6]
    assert "cpu" in read(file)[0]["machine"]


@pytest.mark.filterwarnings("ignore:.*the last line was cut off")
def test_ledger_goes_on_after_a_cut_line(tmp_path):
    file = tmp_path / "runs.jsonl"
    with Ledger(file) as ledger:
        ledger.add({"seed": 0}, {"accuracy": 0.5})
    whole = file.read_bytes()
    file.write_bytes(whole + whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="the last line was cut off"):
        assert len(read(file)) == 1
    with Ledger(file) as ledger:
        ledger.add({"seed": 1}, {"accuracy": 0.6})
    assert [row["key"] for row in read(file)] == [{"seed": 0}, {"seed": 1}]


def test_ledger_refuses_a_key_twice(tmp_path):
    file = tmp_path / "runs.jsonl"
    with Ledger(file) as ledger:
        ledger.add({"seed": 0}, {})
        with pytest.raises(ValueError, match=r"expected a new key, got \{'seed': 0\}"):
            ledger.add({"seed": 0}, {})
    file.write_bytes(2 * file.read_bytes())
    with pytest.raises(ValueError, match="line 2: expected one row of each key"):
        read(file)


@pytest.mark.parametrize("line", ["{", "[]", '{"key": {}}'])
def test_read_tells_a_line_that_is_no_row(tmp_path, line):
    file = tmp_path / "runs.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match="line 1: expected a row of key, machine, result"):
        read(file)


def test_ledger_is_of_one_process(tmp_path):
    file = tmp_path / "runs.jsonl"
    with filelock.FileLock(f"{file}.lock"), pytest.raises(BlockingIOError), Ledger(file):
        pass
