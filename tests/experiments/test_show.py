"""What `sparseprune show` prints and draws of mask files."""

import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

from matplotlib.image import imread
from typer.testing import CliRunner

from sparseprune.experiments.cli import mask_file
from sparseprune.experiments.cli.app import app
from sparseprune.experiments.models import Network
from sparseprune.experiments.show.layers import pixels_of

NETWORK = Network("lenet_300_100", (1, 8, 8), 10)
SHAPES = {"1.weight": (300, 64), "3.weight": (100, 300), "5.weight": (10, 100)}


def some(seed: int, density: float = 0.1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) < density for name, shape in SHAPES.items()}


def write(path: Path, masks: dict[str, torch.Tensor], **facts: object) -> Path:
    given = {"network": NETWORK, "seed": 0, "method": "snip", "sparsity": 0.9, "block": (1, 1), **facts}
    mask_file.save(path, masks, **given)
    return path


def run(*arguments: object):
    return CliRunner().invoke(app, ["show", *map(str, arguments)])


def words(text: str) -> str:
    return " ".join(text.split())


def test_show_prints_layers(tmp_path: Path) -> None:
    masks = {name: torch.zeros(shape).bool() for name, shape in SHAPES.items()}
    masks["1.weight"][0, :] = True  # 64 inputs to a unit
    masks["1.weight"][1, :6] = True  # to one that leads nowhere
    masks["3.weight"][5, 0] = True
    masks["5.weight"][:5, 5] = True
    result = run(write(tmp_path / "masks", masks))
    assert result.exit_code == 0, result.output
    text = words(result.stdout)
    assert "snip 90 %, lenet_300_100 of 1x8x8 inputs and 10 classes" in text
    assert "1.weight 300x64 19,200 70 0.36% 64 0.33% 299 2.51" in text  # 64 x 5 = 10^2.51
    assert "3.weight 100x300 30,000 1 0.00% 1 0.00% 99 2.51" in text
    assert "total 50,200 76 0.15% 70 0.14% 403" in text
    assert "overlap" not in text


def test_show_compares_files(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one", some(1)), write(tmp_path / "other", some(1), method="random")
    again = write(tmp_path / "again", some(2))
    text = words(run(one, other, again).stdout)
    assert text.count("density alive dead units") == 3
    assert "snip 90 % (one)," in text
    assert "snip 90 % (again)" in text
    assert re.search(r"1.weight 1\.000 \(0\.05\d\) 0\.05\d \(0\.05\d\) 0\.05\d \(0\.05\d\)", text)
    figures = json.loads(run(one, other, "--json").stdout)
    assert [of["label"] for of in figures["files"]] == ["snip 90 %", "random 90 %"]
    assert figures["overlaps"][0]["all"]["jaccard"] == 1.0
    assert figures["files"][0]["layers"] == figures["files"][1]["layers"]
    layer = figures["files"][0]["layers"][2]
    assert (layer["name"], layer["weights"], layer["kept"]) == (
        "5.weight",
        1000,
        int(some(1)["5.weight"].sum()),
    )
    assert 0 < layer["alive"] <= layer["kept"]


def test_show_marks_what_is_cut(tmp_path: Path) -> None:
    masks = some(0)
    masks["3.weight"][:] = False
    text = words(run(write(tmp_path / "masks", masks)).stdout)
    assert "3.weight 100x300 30,000 0 0.00% 0 0.00% all 100 -" in text
    text = words(run(write(tmp_path / "masks", masks), "--no-paths").stdout)
    assert "3.weight 100x300 30,000 0 0.00% - - - -" in text


def test_show_orders_layers_as_the_network_does(tmp_path: Path) -> None:
    figures = json.loads(run(write(tmp_path / "masks", dict(reversed(some(0).items()))), "--json").stdout)
    assert [layer["name"] for layer in figures["files"][0]["layers"]] == list(SHAPES)


def test_show_draws_a_picture(tmp_path: Path) -> None:
    cut = some(1)
    cut["3.weight"][:] = False
    masks = [write(tmp_path / f"m{i}", of) for i, of in enumerate([some(0), cut])]
    result = run(*masks, "--out", tmp_path / "new" / "picture.png")
    assert result.exit_code == 0, result.output
    assert f"picture saved in {tmp_path / 'new' / 'picture.png'}" in words(result.stdout.replace("\n", ""))
    image = imread(tmp_path / "new" / "picture.png")
    assert image.shape[:2] == (1460, 1800)
    # White ground, also where a page is dark.
    assert image[0, 0].tolist() == [1.0, 1.0, 1.0, 1.0]


def test_show_draws_no_pixels_for_convolutions(tmp_path: Path) -> None:
    network = Network("lenet5_caffe", (1, 28, 28), 10)
    shapes = {"0": (20, 1, 5, 5), "3": (50, 20, 5, 5), "7": (500, 800), "9": (10, 500)}
    masks = {f"{name}.weight": torch.rand(shape) < 0.2 for name, shape in shapes.items()}
    result = run(write(tmp_path / "m", masks, network=network), "--out", tmp_path / "picture.png")
    assert result.exit_code == 0, result.output
    assert imread(tmp_path / "picture.png").shape[:2] == (1000, 1800)


def test_pixels_count_kept_weights_of_all_channels() -> None:
    mask = torch.zeros(3, 2 * 2 * 3).bool()
    mask[0, 1] = mask[1, 1] = mask[2, 6 + 1] = mask[0, 11] = True
    assert pixels_of({"0.weight": mask}, (2, 2, 3)).tolist() == [[0, 3, 0], [0, 0, 1]]
    assert pixels_of({"0.weight": mask}, (12,)) is None
    assert pixels_of({"0.weight": torch.ones(2, 2, 3, 3).bool()}, (2, 5, 5)) is None
    assert pixels_of({}, (2, 2, 3)) is None


def test_show_calls_no_function_that_a_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("shown_networks.py").write_text(
        "import pathlib\nfrom torch import nn\npathlib.Path('imported').touch()\n"
        "def small():\n    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))\n"
    )
    network = Network("lenet_300_100", (4,), 2)
    object.__setattr__(network, "name", "shown_networks:small")
    masks = {"0.weight": torch.ones(3, 4).bool(), "2.weight": torch.eye(2, 3).bool()}
    file = write(tmp_path / "masks", masks, network=network)
    result = run(file)
    assert not Path("imported").exists()
    text = words(result.stdout)
    assert "0.weight 3x4 12 12 100.00% - - - -" in text
    assert "alive: unknown (give the function that made the network as --model)" in text
    text = words(run(file, "--model", "shown_networks:small").stdout)
    assert "0.weight 3x4 12 12 100.00% 8 66.67% 1 0.90" in text


def error(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def test_show_tells_errors_in_one_line(tmp_path: Path) -> None:
    good, missing, damaged = write(tmp_path / "good", some(0)), tmp_path / "missing", tmp_path / "damaged"
    damaged.write_bytes(good.read_bytes()[:-1])
    assert error(missing) == (
        f"Error: show: there is no file {missing}; make it with `sparseprune prune --out`"
    )
    assert error(good, damaged).startswith(
        f"Error: show: expected a file that `sparseprune prune --out` wrote, got {damaged}, which is"
    )
    wide = write(tmp_path / "wide", some(0), network=Network("lenet_300_100", (64,), 10))
    assert error(good, wide) == (
        "Error: show: expected masks of one network, got lenet_300_100 of 1x8x8 inputs and 10 classes in "
        f"{good} and lenet_300_100 of 64 inputs and 10 classes in {wide}, which cannot be compared layer by "
        "layer; show them one by one"
    )
    network = Network("lenet_300_100", (1, 8, 8), 10)
    object.__setattr__(network, "name", "lenet_9")
    assert f"{good} is of an unknown network: lenet_9 of 1x8x8" in error(
        write(good, some(0), network=network)
    )
    network = Network("resnet8", (1, 8, 8), 10)
    assert "show: expected a bool mask of shape (32, 1, 3, 3) for '0.weight'" in error(
        write(good, some(0), network=network)
    )
    assert "cannot make the network of" in error(write(good, some(0), network=Network("resnet8", (64,), 10)))
    assert f"cannot write {tmp_path} (it is a folder)" in error(good, "--out", tmp_path)
