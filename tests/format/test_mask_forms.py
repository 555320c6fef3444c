"""Masks as users have them."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseprune.format.masks import normal_masks

NAMES = ["0.weight", "1.module.weight"]
MASKS = {
    "0.weight": torch.tensor([[True, False, True]]),
    "1.module.weight": torch.tensor([[False, True], [True, True]]),
}
FORMS: dict[str, Any] = {
    "bool": lambda mask: mask,
    "float32": lambda mask: mask.float(),
    "bfloat16": lambda mask: mask.bfloat16(),
    "uint8": lambda mask: mask.to(torch.uint8),
    "int64": lambda mask: mask.long(),
    "numpy bool": lambda mask: mask.numpy(),
    "numpy uint16": lambda mask: mask.numpy().astype("uint16"),
    "numpy float64 of the other byte order": lambda mask: mask.numpy().astype(">f8"),
    "numpy backwards": lambda mask: mask.flip(0, 1).numpy()[::-1, ::-1],
}


def check(masks: Any, names: list[str] = NAMES) -> None:
    found = normal_masks(masks, names, "test")
    assert list(found) == names
    for name, mask in zip(names, MASKS.values(), strict=True):
        assert found[name].dtype == torch.bool
        assert torch.equal(found[name], mask)


@pytest.mark.parametrize("form", FORMS)
def test_masks_of_any_type(form: str) -> None:
    check({name: FORMS[form](mask) for name, mask in MASKS.items()})
    check([FORMS[form](mask) for mask in MASKS.values()])
    check(tuple(FORMS[form](mask) for mask in MASKS.values()))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_names_with_wrappers(prefix: str) -> None:
    check({prefix + name: mask for name, mask in MASKS.items()})
    wrapped = [prefix + name for name in NAMES]
    check(MASKS, wrapped)
    check({f"_orig_mod.{name}": mask for name, mask in MASKS.items()}, wrapped)
    check({"_orig_mod.0.weight": MASKS["0.weight"], "1._orig_mod.weight": MASKS["1.module.weight"]})


def test_names_that_two_weights_could_have_are_taken_as_they_are() -> None:
    names = ["0.weight", "module.0.weight"]
    check(dict(zip(names, MASKS.values(), strict=True)), names)
    assert list(normal_masks({"_orig_mod.0.weight": MASKS["0.weight"]}, names, "test")) == [
        "_orig_mod.0.weight"
    ]


def test_masks_that_are_bool_are_not_copied() -> None:
    found = normal_masks({**MASKS, "of no weight": torch.ones(1).bool()}, NAMES, "test")
    assert all(found[name] is mask for name, mask in MASKS.items())
    assert "of no weight" in found


def test_a_file_of_masks(tmp_path: Path) -> None:
    safetensors.torch.save_file(MASKS, tmp_path / "masks", {"network": '"any"'})
    check(tmp_path / "masks")
    check(str(tmp_path / "masks"))
    with pytest.raises(FileNotFoundError, match="test: expected a file"):
        normal_masks(tmp_path / "others", NAMES, "test")
    (tmp_path / "others").write_bytes(b"0")
    with pytest.raises(ValueError, match="test: expected a file of safetensors"):
        normal_masks(tmp_path / "others", NAMES, "test")


@given(
    st.lists(st.sampled_from([0.0, 1.0, 0.5, -1.0, 2.0, float("nan")]), min_size=1, max_size=6), st.booleans()
)
def test_numbers_other_than_0_and_1_are_refused(numbers: list[float], in_numpy: bool) -> None:
    mask: Any = numpy.array(numbers) if in_numpy else torch.tensor(numbers)
    if set(numbers) <= {0.0, 1.0}:
        assert normal_masks({"a": mask}, ["a"], "test")["a"].tolist() == [n == 1 for n in numbers]
    else:
        with pytest.raises(ValueError, match=r"test: 'a': expected a mask of 0 and 1 .* topk_masks"):
            normal_masks({"a": mask}, ["a"], "test")


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ([MASKS["0.weight"]], ValueError, r"expected a list of 2 masks, one for each of 0.weight, .* got 1"),
        (
            {"0.weight": [1, 0]},
            TypeError,
            "'0.weight': expected the mask to be a tensor or an array, got list",
        ),
        ({"0.weight": numpy.array(["a"])}, TypeError, "a mask of 0 and 1, got an array of <U1"),
        ({**MASKS, "module.0.weight": MASKS["0.weight"]}, ValueError, "one mask for '0.weight', got two"),
        (torch.ones(2), TypeError, "masks by parameter name, a list of them or a file, got Tensor"),
        (3, TypeError, "masks by parameter name, a list of them or a file, got int"),
    ],
)
def test_other_masks_are_refused(masks: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"test: .*{message}|test: {message}"):
        normal_masks(masks, NAMES, "test")


def test_a_list_is_in_the_order_that_is_given() -> None:
    found = normal_masks([MASKS["1.module.weight"]], NAMES, "test", in_order=["1.module.weight"])
    assert found.keys() == {"1.module.weight"}
