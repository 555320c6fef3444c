"""Prepared data: sparse rows with labels in a file .npz, split into training, validation and test samples."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from sparseprune.experiments.data import Dataset
from sparseprune.experiments.data.inputs import Csr
from sparseprune.format import files

Integers = NDArray[np.int64]
# One part of so many is for testing, and one of so many of the rest for validation.
PARTS = 5
CSR = ("data", "indices", "indptr", "shape")


@dataclass(frozen=True)
class Prepared:
    """A classification data set of sparse rows.

    Attributes:
        train_x, test_x: float32, (samples, inputs).
        train_y, test_y: labels, (samples,).
        validation: which training samples are held out while rates are tuned.
        inputs: name of each input.
        classes: name of each label.
        facts: what it is, where it was taken from, and counts.
    """

    train_x: sparse.csr_matrix
    train_y: Integers
    test_x: sparse.csr_matrix
    test_y: Integers
    validation: Integers
    inputs: list[str]
    classes: list[str]
    facts: dict[str, Any]

    def tuning(self) -> Prepared:
        """The training samples alone: those for validation are the test part."""
        rest = np.setdiff1d(np.arange(len(self.train_y)), self.validation)
        return dataclasses.replace(
            self,
            train_x=self.train_x[rest],
            train_y=self.train_y[rest],
            test_x=self.train_x[self.validation],
            test_y=self.train_y[self.validation],
            validation=self.validation[:0],
        )

    def fewer(self, samples: int) -> Prepared:
        """So many training samples drawn at random, always the same ones."""
        chosen = np.random.default_rng(0).permutation(len(self.train_y))[:samples]
        held = np.isin(chosen, self.validation).nonzero()[0]
        return dataclasses.replace(
            self, train_x=self.train_x[chosen], train_y=self.train_y[chosen], validation=held
        )

    def dataset(self, name: str) -> Dataset:
        """The same for training networks: inputs become dense a batch at a time.

        All are multiplied by one number, so that their mean square over the training samples is 1: initial
        weights are made for that. Rows of tf-idf have length 1, and would be 180 times smaller.
        """
        x = self.train_x
        scale = np.float32(np.sqrt(np.prod(x.shape, dtype=np.float64) / max(x.multiply(x).sum(), 1e-30)))
        return Dataset(
            name,
            self.facts["what"],
            _rows(self.train_x * scale),
            torch.from_numpy(self.train_y),
            _rows(self.test_x * scale),
            torch.from_numpy(self.test_y),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What the file holds, but for the facts; sparse rows as x_data, x_indices, x_indptr, x_shape."""
        return {
            **_csr_arrays("x", self.train_x),
            "y": self.train_y,
            **_csr_arrays("x_test", self.test_x),
            "y_test": self.test_y,
            "validation": self.validation,
            "inputs": np.array(self.inputs),
            "classes": np.array(self.classes),
        }

    @property
    def sha256(self) -> str:
        """Of all arrays: what two machines that prepare the same data have in common."""
        digest = hashlib.sha256()
        for name, array in self.arrays().items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def figures(self) -> dict[str, Any]:
        """Facts, sizes and digest, for a file of results."""
        rest = len(self.train_y) - len(self.validation)
        return {
            **self.facts,
            "training samples": len(self.train_y),
            "of these for validation": len(self.validation),
            "of these for training while rates are tuned": rest,
            "test samples": len(self.test_y),
            "inputs": self.train_x.shape[1],
            "inputs of a sample that are not zero, mean": round(self.train_x.nnz / len(self.train_y), 1),
            "samples by class": {
                name: int((self.train_y == i).sum() + (self.test_y == i).sum())
                for i, name in enumerate(self.classes)
            },
            "sha256": self.sha256,
        }


class Parts(NamedTuple):
    """Which samples are for training (those for validation included), for testing, and for validation.

    The last are positions among the training samples.
    """

    train: Integers
    test: Integers
    validation: Integers


def split(labels: Integers, groups: NDArray[Any], seed: int) -> Parts:
    """Divide samples so that parts have about the same shares of classes, and no group is in two of them.

    Args:
        labels: (samples,).
        groups: what each sample belongs to, (samples,).
        seed: seed of the choice.
    Returns:
        a fifth of the samples for testing, and a fifth of the rest for validation.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    def fold(labels: Integers, groups: NDArray[Any]) -> tuple[Integers, Integers]:
        folds = StratifiedGroupKFold(PARTS, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # Of a class with a handful of samples some part has none, which is what is wanted.
            warnings.filterwarnings("ignore", "The least populated class")
            return next(folds.split(labels, labels, groups))

    train, test = fold(labels, groups)
    _, validation = fold(labels[train], groups[train])
    return Parts(train, test, validation)


def save(prepared: Prepared, file: Path) -> None:
    """Write the file, whole or not at all."""
    stream = io.BytesIO()
    arrays: dict[str, Any] = {**prepared.arrays(), "facts": np.array(json.dumps(prepared.facts))}
    np.savez_compressed(stream, **arrays)
    files.write(file, stream.getvalue())


def read(file: Path) -> Prepared:
    """What `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"wide_data: expected {file}, which is not there; "
            f"python -m bench.wide_data prepare --data {file.stem} makes it"
        )
    with np.load(file) as content:
        try:
            return Prepared(
                _csr(content, "x"),
                content["y"],
                _csr(content, "x_test"),
                content["y_test"],
                content["validation"],
                [str(name) for name in content["inputs"]],
                [str(name) for name in content["classes"]],
                json.loads(str(content["facts"])),
            )
        except KeyError as error:
            raise ValueError(
                f"wide_data: expected a file of bench.wide_data prepare, got {file} without {error}; "
                "prepare it again"
            ) from error


def _csr_arrays(name: str, x: sparse.csr_matrix) -> dict[str, NDArray[Any]]:
    parts = (
        x.data.astype(np.float32),
        *(np.asarray(part, np.int64) for part in (x.indices, x.indptr, x.shape)),
    )
    return {f"{name}_{key}": part for key, part in zip(CSR, parts, strict=True)}


def _csr(content: Any, name: str) -> sparse.csr_matrix:
    data, indices, indptr, shape = (content[f"{name}_{key}"] for key in CSR)
    return sparse.csr_matrix((data, indices, indptr), shape=tuple(shape))


def _rows(x: sparse.csr_matrix) -> Csr:
    crow, col = (torch.from_numpy(part.astype(np.int64)) for part in (x.indptr, x.indices))
    return Csr(crow, col, torch.from_numpy(x.data), x.shape)
