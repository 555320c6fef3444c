"""Mask files: what is read, and that nothing else does any harm."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("typer")
pytest.importorskip("safetensors")

import safetensors.torch
from typer.testing import CliRunner

from sparseprune.experiments.cli import mask_file
from sparseprune.experiments.cli.app import app
from sparseprune.experiments.models import Network

RECORDED = Path(__file__).parents[1] / "recorded" / "masks.pt"  # of torch.save
NETWORK = Network("lenet_300_100", (1, 8, 8), 10)
SHAPES = {"1.weight": (300, 64), "3.weight": (100, 300), "5.weight": (10, 100)}
FACTS = {"network": NETWORK.to_dict(), "seed": 0, "method": "random", "sparsity": 0.5, "block": [4, 1]}


def masks() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in SHAPES.items()}


def stored(tensors: dict[str, torch.Tensor], **facts: Any) -> bytes:
    """A file of these tensors; what facts are not a text is written in JSON, None leaves one out."""
    everything = {**FACTS, **facts}
    texts = {k: v if k in facts and isinstance(v, str) else json.dumps(v) for k, v in everything.items()}
    return safetensors.torch.save(tensors, {k: v for k, v in texts.items() if everything[k] is not None})


def pickled(content: Any) -> bytes:
    torch.save(content, stream := io.BytesIO())
    return stream.getvalue()


GOOD = stored(masks())
GOOD_PICKLE = pickled({**FACTS, "masks": masks(), "block": (4, 1)})


def load(path: Path, content: bytes) -> dict[str, Any]:
    path.write_bytes(content)
    return mask_file.load(path, NETWORK, 0)


@pytest.mark.parametrize("block", [(4, 1), (1, 1), "auto"])
def test_save_and_load(tmp_path: Path, block: Any) -> None:
    file, some = tmp_path / "new" / "masks", masks()
    # Views of one storage, not contiguous.
    some["3.weight"] = torch.cat([some["3.weight"].T, some["3.weight"].T], 1)[:, :100].T
    facts = {"network": NETWORK, "seed": 0, "method": "random", "sparsity": 0.5, "block": block}
    mask_file.save(file, some, **facts)
    content = mask_file.load(file, NETWORK, 0)
    assert content.keys() == FACTS.keys() | {"masks"}
    assert (content["seed"], content["method"], content["sparsity"]) == (0, "random", 0.5)
    assert content["block"] == block
    assert content["network"] == {"name": "lenet_300_100", "sample": [1, 8, 8], "classes": 10, "width": 1.0}
    for name, mask in some.items():
        assert torch.equal(content["masks"][name], mask)
    # Anybody can read it.
    with safetensors.safe_open(file, framework="pt") as other:
        assert {name: json.loads(text) for name, text in other.metadata().items()} == {
            **FACTS,
            "network": content["network"],
            "block": block if block == "auto" else list(block),
        }


def test_load_reads_files_of_torch_save(tmp_path: Path) -> None:
    content = load(tmp_path / "masks", GOOD_PICKLE)
    assert content["block"] == (4, 1)
    assert all(torch.equal(content["masks"][name], mask) for name, mask in masks().items())


def test_what_is_loaded_does_not_follow_the_file(tmp_path: Path) -> None:
    content = load(tmp_path / "masks", GOOD)
    with (tmp_path / "masks").open("r+b") as stream:
        stream.truncate()
    assert all(torch.equal(content["masks"][name], mask) for name, mask in masks().items())


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("made-by-a-pickle",)


def with_header(text: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + data


def zipped(data: bytes) -> bytes:
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3")
    return stream.getvalue()


OTHERS = {
    "empty": b"",
    "one byte": b"{",
    "a text": b"epoch,loss\n1,0.5\n",
    "a picture": b"\x89PNG\r\n\x1a\n",
    "a pickle": pickle.dumps(FACTS),
    "a pickle that runs code": pickle.dumps(Evil()),
    "a checkpoint that runs code": pickled({**FACTS, "masks": Evil()}),
    "a zip that runs code": zipped(pickle.dumps(Evil())),
    "an old pickle that runs code": pickle.dumps([0x1950A86A20F9469CFC6C, 1001, Evil()]),
    "another checkpoint": pickled({"state_dict": masks()}),
    "a tensor": pickled(torch.ones(3)),
    "masks that are a list": pickled({**FACTS, "masks": list(masks().values())}),
    "masks that are numbers": pickled({**FACTS, "masks": dict.fromkeys(SHAPES, 1)}),
    "masks without names": pickled({**FACTS, "masks": dict(enumerate(masks().values()))}),
    "masks that are parameters": pickled({**FACTS, "masks": {"a": torch.nn.Parameter(torch.ones(1))}}),
    "a header without end": struct.pack("<Q", 2**63) + b"{}",
    "a header beyond the file": struct.pack("<Q", 10**8) + b"{}",
    "a deep header": with_header("[" * 100_000),
    "a tensor without bytes": with_header('{"a": {"dtype": "BOOL", "shape": [9], "data_offsets": [0, 9]}}'),
    "a tensor of another length": with_header(
        '{"a": {"dtype": "BOOL", "shape": [9], "data_offsets": [0, 1]}}', b"0"
    ),
    "a shape beyond numbers": with_header(
        '{"a": {"dtype": "BOOL", "shape": [0, 99999999999999999999], "data_offsets": [0, 0]}}'
    ),
    "no metadata": safetensors.torch.save(masks()),
    "no network": stored(masks(), network=None),
    "no seed": stored(masks(), seed=None),
    "no JSON": stored(masks(), network="lenet_300_100"),
    "deep JSON": stored(masks(), network="[" * 100_000),
    "a network that is a list": stored(masks(), network=[1]),
    "a network without fields": stored(masks(), network={}),
    "a network of more fields": stored(masks(), network={**FACTS["network"], "depth": 3}),
    "a sample of texts": stored(masks(), network={**FACTS["network"], "sample": ["1"]}),
    "a sample that is a number": stored(masks(), network={**FACTS["network"], "sample": 1}),
    "a name of two lines": stored(masks(), network={**FACTS["network"], "name": "a\nb"}),
    "a name that is none": stored(masks(), network={**FACTS["network"], "name": 1}),
    "a seed that is a text": stored(masks(), seed='"0"'),
    "a seed that is true": stored(masks(), seed=True),
    "a method that is a number": stored(masks(), method=1),
    "a method of two lines": stored(masks(), method=json.dumps("a\nb")),
    "a sparsity of 2": stored(masks(), sparsity=2.0),
    "no number": stored(masks(), sparsity="NaN"),
    "a sparsity that is a list": stored(masks(), sparsity=[]),
    "a block of 3": stored(masks(), block=[3, 1]),
    "a block of two columns": stored(masks(), block=[4, 2]),
    "a block that is a text": stored(masks(), block='"4"'),
}


@pytest.mark.parametrize("name", OTHERS)
def test_load_refuses_other_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "masks"
    with pytest.raises(ValueError, match="which is another or damaged") as caught:
        load(file, OTHERS[name])
    assert str(caught.value) == (
        f"--masks: expected a file that `sparseprune prune --out` wrote, got {file}, which is another or "
        "damaged; make it anew with `sparseprune prune --out`"
    )
    assert list(tmp_path.iterdir()) == [file]
    assert list(recwarn) == []


def changed(**tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    others = {name.replace("_", "."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in {**masks(), **others}.items() if tensor is not None}


TWOS = torch.full((300, 64), 2, dtype=torch.uint8).view(torch.bool)
WRONG = {
    "one too few": (changed(**{"5_weight": None}), "bool mask of shape (10, 100) for '5.weight'", "none"),
    "one too many": (changed(bias=torch.ones(3).bool()), "none for 'bias'", "bool of shape (3,)"),
    "numbers": (changed(**{"1_weight": torch.ones(300, 64)}), "for '1.weight'", "float32 of shape (300, 64)"),
    "a shape": (changed(**{"1_weight": torch.ones(64, 300).bool()}), "(300, 64)", "bool of shape (64, 300)"),
    "bytes": (changed(**{"1_weight": TWOS}), "a bool mask of shape (300, 64)", "other bytes than 0 and 1"),
}


@pytest.mark.parametrize("form", ["safetensors", "torch.save"])
@pytest.mark.parametrize("name", WRONG)
def test_load_refuses_masks_that_do_not_fit(tmp_path: Path, name: str, form: str) -> None:
    tensors, expected, found = WRONG[name]
    content = stored(tensors) if form == "safetensors" else pickled({**FACTS, "masks": tensors})
    with pytest.raises(ValueError, match="make it anew") as caught:
        load(tmp_path / "masks", content)
    message = str(caught.value)
    assert message.startswith("--masks: expected ")
    assert expected in message
    assert message.endswith(f", got {found}; make it anew with `sparseprune prune --out`")


def test_load_refuses_sparse_masks(tmp_path: Path) -> None:
    tensors = {name: mask.to_sparse() for name, mask in masks().items()}
    with pytest.raises(ValueError, match=r"expected a bool mask of shape \(300, 64\) for '1.weight'"):
        load(tmp_path / "masks", pickled({**FACTS, "masks": tensors}))


def test_load_refuses_masks_of_another_network_or_seed(tmp_path: Path) -> None:
    message = r"was made for wide_mlp of 1x8x8 inputs and 10 classes with seed 0, but the network to train is"
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "masks", stored(masks(), network={**FACTS["network"], "name": "wide_mlp"}))
    with pytest.raises(ValueError, match=r"with seed 3, but the network to train is .* with seed 0; give"):
        load(tmp_path / "masks", stored(masks(), seed=3))


def test_command_tells_what_is_no_mask_file_in_one_line(tmp_path: Path) -> None:
    folder, fifo, damaged = tmp_path / "folder", tmp_path / "fifo", tmp_path / "damaged"
    folder.mkdir()
    os.mkfifo(fifo)
    damaged.write_bytes(GOOD[:-1])
    for path, message in [
        (folder, f"there is no file {folder}"),
        (fifo, f"there is no file {fifo}"),
        (damaged, f"got {damaged}, which is another or damaged; make it anew"),
    ]:
        arguments = ["train", "--data", "digits", "--model", "lenet_300_100", "--masks", str(path)]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1
        *_, line = result.stderr.splitlines()
        assert line.startswith("Error: --masks: ")
        assert message in line
        assert "Traceback" not in result.output


@st.composite
def damage(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A mask file, and the same with bytes changed, cut off, put in or taken out; 5 ms an example."""
    whole = draw(st.sampled_from([GOOD, GOOD_PICKLE, RECORDED.read_bytes()]))
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        # Headers are at the start, and the names in a zip at its end.
        near = draw(st.sampled_from([64, 1024, len(content)]))
        at = draw(st.integers(0, max(min(near, len(content)) - 1, 0)))
        at = draw(st.sampled_from([at, max(len(content) - 1 - at, 0)]))
        some = draw(st.binary(max_size=9))
        match draw(st.sampled_from(["flip", "write", "cut", "insert", "take"])):
            case "flip" if content:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "write":
                content[at : at + len(some)] = some
            case "cut":
                del content[at:]
            case "insert":
                content[at:at] = some
            case "take":
                del content[at : at + draw(st.integers(1, 100))]
    return whole, bytes(content)


@given(damage())
@example((GOOD, GOOD[:8]))
def test_damaged_files_are_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, files: tuple[bytes, bytes]
) -> None:
    whole, damaged = files
    file, error = tmp_path_factory.getbasetemp() / "damaged-masks", None
    try:
        content = load(file, damaged)
    except (ValueError, OSError) as caught:
        error = caught
    if error is not None:
        assert str(error).startswith("--masks: ")
        assert len(str(error).splitlines()) == 1
        return
    # Some damage is none, or makes other masks.
    assert content.keys() == FACTS.keys() | {"masks"}
    assert {name: tuple(mask.shape) for name, mask in content["masks"].items()} == SHAPES
    if damaged == whole:
        assert content["seed"] == 0
