import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("typer")
pytest.importorskip("optuna")

from bench_wide import made_up
from typer.testing import CliRunner

from bench.wide_data import __main__ as command
from bench.wide_data import apt, biology, prepared, text
from bench.wide_data.prepared import split
from sparseprune.experiments.data import load

PACKAGES = """Package: zebra
Source: stripes (1.2)
Description-md5: 1
Section: games
Tag: game::animal,
 role::program

Package: ant
Description-md5: 2
Section: contrib/net

Package: fox
Description-md5: 3
Section: libs

Package: bee
Description-md5: 4
Section: net

Package: cat
Source: stripes
Description-md5: 5
Section: games

Package: nothing
Section: net
"""
TRANSLATIONS = """Package: zebra
Description-md5: 1
Description-en: a striped game
 It has stripes: black ones.
 .
 And white ones.

Package: ant
Description-md5: 2
Description-en: small worker

Package: fox
Description-md5: 3
Description-en: a library

Package: bee
Description-md5: 4
Description-en: small worker

Package: cat
Description-md5: 6
Description-en: of another version
"""


@pytest.fixture
def wide():
    return made_up()


def test_fields_joins_further_lines():
    found = list(apt.fields(TRANSLATIONS))
    assert len(found) == 5
    assert found[0] == {
        "Package": "zebra",
        "Description-md5": "1",
        "Description-en": "a striped game\nIt has stripes: black ones.\n.\nAnd white ones.",
    }
    assert list(apt.fields("")) == list(apt.fields("\n\n")) == []


def test_descriptions_takes_each_text_once_and_chosen_sections_alone():
    found = text.descriptions(PACKAGES, TRANSLATIONS)
    assert [(one.package, one.source, one.section) for one in found] == [
        ("ant", "ant", "net"),
        ("zebra", "stripes", "games"),
    ]
    assert found[0].text == "small worker"


def test_split_keeps_groups_together_and_every_class_in_each_part():
    labels = np.arange(200) % 4
    groups = np.repeat(np.arange(50), 4)[np.random.default_rng(0).permutation(200)]
    parts = split(labels, groups, seed=0)
    assert sorted([*parts.train, *parts.test]) == list(range(200))
    validation = parts.train[parts.validation]
    rest = np.setdiff1d(parts.train, validation)
    for one, other in ((rest, validation), (rest, parts.test), (validation, parts.test)):
        assert not set(groups[one]) & set(groups[other])
    for part in (rest, validation, parts.test):
        assert set(labels[part]) == set(range(4))
    assert 30 <= len(parts.test) <= 50
    again = split(labels, groups, seed=0)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))
    assert (split(labels, groups, seed=1).test[:5] != parts.test[:5]).any()


def test_prepare_text_counts_words_of_training_texts_alone(monkeypatch, tmp_path):
    records = [(f"p{i}", f"s{i // 2}", text.SECTIONS[i // 2 % 10], f"common only{i}") for i in range(100)]
    lists = {
        "Packages": "\n\n".join(
            f"Package: {name}\nSource: {source}\nSection: {section}\nDescription-md5: m"
            for name, source, section, _ in records
        ),
        "Translation-en": "\n\n".join(
            f"Package: {name}\nDescription-md5: m\nDescription-en: {words}" for name, _, _, words in records
        ),
    }
    monkeypatch.setattr(apt, "update", lambda folder: None)
    monkeypatch.setattr(apt, "records", lambda folder, kind: lists[kind])
    monkeypatch.setattr(apt, "release", lambda folder: ["Debian test"])
    made = text.prepare(tmp_path, 0)
    assert made.facts["records"] == made.facts["distinct descriptions"] == 100
    assert made.facts["source packages"] == 50
    assert made.classes == list(text.SECTIONS)
    assert made.train_x.shape == (len(made.train_y), 1 + len(made.train_y))
    assert made.train_x.dtype == np.float32
    # Of a test text only the common word is known, and rows have length 1.
    assert (made.test_x.getnnz(axis=1) == 1).all()
    assert (made.test_x.data == 1).all()
    assert made.inputs[0] == "common"
    assert text.prepare(tmp_path, 0).sha256 == made.sha256
    assert text.prepare(tmp_path, 1).sha256 != made.sha256


def test_save_writes_what_read_and_load_understand(wide, tmp_path):
    file = tmp_path / "wide.npz"
    prepared.save(wide, file)
    back = prepared.read(file)
    assert back.sha256 == wide.sha256
    assert (back.inputs, back.classes, back.facts) == (wide.inputs, wide.classes, wide.facts)
    # As a user's own data, too.
    data = load(str(file))
    index = torch.arange(len(wide.train_y))
    assert torch.equal(
        data.train_x[index].dense(), torch.from_numpy(wide.train_x.toarray()).to(torch.float32)
    )
    assert torch.equal(data.test_y, torch.from_numpy(wide.test_y))


def test_dataset_has_mean_square_one(wide):
    data = wide.dataset("wide")
    x, given = data.train_x.dense(), torch.from_numpy(wide.train_x.toarray())
    # A sum of 2,000 squares, each rounded once or twice.
    assert x.square().mean().item() == pytest.approx(1, abs=2000 * 2**-23)
    scale = x.max() / given.max()
    assert torch.allclose(x, given * scale, rtol=2**-22)
    assert torch.allclose(data.test_x.dense(), torch.from_numpy(wide.test_x.toarray()) * scale, rtol=2**-22)


def test_read_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m bench\.wide_data prepare --data words makes it"):
        prepared.read(tmp_path / "words.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"got .*other\.npz without .*x_data.*; prepare it again"):
        prepared.read(tmp_path / "other.npz")


def test_tuning_holds_validation_samples_out(wide):
    tuning = wide.tuning()
    assert len(tuning.train_y) + len(tuning.test_y) == len(wide.train_y)
    assert (tuning.test_x != wide.train_x[wide.validation]).nnz == 0
    few = wide.fewer(20)
    assert len(few.train_y) == 20
    assert set(map(bytes, few.train_x[few.validation].toarray())) <= set(map(bytes, tuning.test_x.toarray()))


def test_apt_says_what_to_do_without_apt(monkeypatch, tmp_path):
    def missing(*arguments, **options):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    with pytest.raises(FileNotFoundError, match="expected apt-get of Debian or Ubuntu, which is not there; "):
        apt.update(tmp_path)
    outcome = CliRunner().invoke(command.app, ["prepare", "--data-dir", str(tmp_path)])
    assert outcome.exit_code == 1
    assert "in a container of one, and copy the file" in outcome.output
    with pytest.raises(FileNotFoundError, match="does the system's apt know a Debian or Ubuntu archive"):
        apt.records(tmp_path, "Packages")


def test_apt_tells_the_last_lines_of_a_failure(monkeypatch, tmp_path):
    def failing(command, **options):
        raise subprocess.CalledProcessError(100, command, stderr="W: a\nE: no such archive\n")

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(OSError, match="apt-get update failed: W: a E: no such archive"):
        apt.update(tmp_path)


def test_release_leaves_updates_and_security_out(tmp_path):
    (tmp_path / "lists").mkdir()
    for name in ("a_dists_x", "a_dists_x-updates", "b_dists_y"):
        head = (
            f"-----BEGIN\nHash: S\n\nOrigin: Debian\nCodename: {name}\nVersion: 1\nDate: today\nMD5Sum:\n 1 2"
        )
        (tmp_path / "lists" / f"{name}_InRelease").write_text(head)
    for name in ("a_dists_x", "a_dists_x-updates"):
        (tmp_path / "lists" / f"{name}_main_binary-amd64_Packages.lz4").touch()
    assert apt.release(tmp_path) == ["Debian a_dists_x 1 today"]


class OfR:
    """Stands for an array of R with names."""

    dims = ("rows", "columns")

    def __init__(self, values, rows, columns):
        self.values, self.coords = values, {"rows": rows, "columns": columns}

    def to_numpy(self):
        return self.values


def test_muscle_cells_scales_genes_that_training_cells_express(monkeypatch, tmp_path):
    pandas = pytest.importorskip("pandas")
    order = np.random.default_rng(0)
    values = np.exp(order.random((5, 40))) - 1
    values[2] = 0
    genes, cells = pandas.Index(list("abcde")), pandas.Index([f"c{i}" for i in range(40)])
    objects = {
        "HSMM_expr_matrix": OfR(values, genes, cells),
        # In another order than the matrix.
        "HSMM_sample_sheet": pandas.DataFrame({"Hours": np.arange(40) % 4 * 24}, index=cells)[::-1],
        "HSMM_gene_annotation": pandas.DataFrame({"gene_short_name": list("ABCDE")}, index=genes),
    }
    monkeypatch.setattr(apt, "unpack", lambda folder, package: (tmp_path, f"{package}_1.deb"))
    monkeypatch.setattr(apt, "release", lambda folder: ["Debian test"])
    monkeypatch.setattr(biology, "read_r", lambda root, file, name: objects[name])
    made = biology.muscle_cells(tmp_path, 0)
    assert made.inputs == ["A", "B", "D", "E"]
    assert made.classes == ["0 h", "24 h", "48 h", "72 h"]
    assert made.facts["taken from"] == ["r-bioc-hsmmsinglecell_1.deb", "Debian test"]
    parts = split(np.arange(40) % 4, np.arange(40), 0)
    assert made.train_y.tolist() == (parts.train % 4).tolist()
    expected = np.log1p(values[[0, 1, 3, 4]]).T
    expected = (expected / expected[parts.train].max(0)).astype(np.float32)
    assert np.allclose(made.train_x.toarray(), expected[parts.train], rtol=2**-20, atol=0)
    assert np.allclose(made.test_x.toarray(), expected[parts.test], rtol=2**-20, atol=0)


def test_genotypes_counts_what_was_not_read_as_no_allele(monkeypatch, tmp_path):
    pandas = pytest.importorskip("pandas")
    counts = np.tile([[0.0, 1.0, 2.0], [np.nan, 2.0, 0.0]], (10, 1))
    found = type("Genind", (), {})()
    found.tab = OfR(counts, None, None)
    found.pop = pandas.Categorical(["2", "1"] * 10)
    found.other = {"popInfo": pandas.DataFrame({"Label": [2, 1], "Population": ["Second", "First"]})}
    vars(found)["all.names"] = {"loc-1": ["125", "129"], "loc-2": ["130"]}
    monkeypatch.setattr(apt, "unpack", lambda folder, package: (tmp_path, f"{package}_1.deb"))
    monkeypatch.setattr(apt, "release", lambda folder: [])
    monkeypatch.setattr(biology, "read_r", lambda root, file, name: found)
    made = biology.genotypes(tmp_path, 0)
    assert made.inputs == ["loc-1.125", "loc-1.129", "loc-2.130"]
    assert made.classes == ["First", "Second"]
    for row, label in zip(made.train_x.toarray(), made.train_y, strict=True):
        assert row.tolist() == ([0, 2, 0] if label == 0 else [0, 1, 2])


def test_read_r_names_the_package_that_reads_files_of_r(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rdata", None)
    with pytest.raises(ModuleNotFoundError, match="pip install rdata, which reads files of R"):
        biology.read_r(tmp_path, "a.rda", "a")
