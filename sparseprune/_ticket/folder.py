"""What a search for a lottery ticket has found so far, in files that are whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor, nn

from sparseprune.format import files

START, ROUND, LOCK = "start.pt", "round-{:03}.pt", "search.lock"


@dataclass(frozen=True, eq=False)
class Finished:
    """What training gave.

    Attributes:
        trained: the trained weights that the masks keep, ``{parameter name: 1-d tensor}``.
        seconds: wall-clock time.
        result: what ``train`` returned, as JSON.
    """

    trained: Mapping[str, Tensor]
    seconds: float
    result: str


@dataclass(frozen=True)
class Folder:
    """The weights that every round starts from, and the rounds; without a path nothing is kept or found.

    Each file also has the state of torch's global generator, so that it goes on where it was.
    """

    path: Path | None
    settings: Mapping[str, Any]

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: str | Path | None, settings: Mapping[str, Any]) -> Iterator[Folder]:
        """Keep other processes out while this one works there.

        Raises:
            BlockingIOError: another process does.
            OSError: the folder cannot be written to.
        """
        if path is None:
            yield cls(None, settings)
            return
        with alone(Path(path) / LOCK, "lottery_ticket"):
            yield cls(Path(path), settings)

    def read_start(self, like: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The parameters and buffers of the file; None if there is none.

        Args:
            like: tensors of the names, shapes and dtypes that they must have.
        Raises:
            ValueError: they are of other settings, or damaged.
        """
        if (found := self._read(START, "settings", "state", "generator")) is None:
            return None
        there, state = found["settings"], found["state"]
        names = list(dict.fromkeys([*self.settings, *there]))
        if different := [
            f"{name} {there.get(name)!r} there, {self.settings.get(name)!r} now"
            for name in names
            if there.get(name) != self.settings.get(name)
        ]:
            raise ValueError(
                f"lottery_ticket: expected the settings of the rounds in {self.path}, got others: "
                f"{'; '.join(different)}; give another folder, or the same settings"
            )
        if {name: _form(tensor) for name, tensor in state.items()} != {n: _form(t) for n, t in like.items()}:
            raise self._damaged(START, "other tensors than the network has")
        torch.set_rng_state(found["generator"])
        return state

    def write_start(self, state: Mapping[str, Tensor]) -> None:
        """Keep the parameters and buffers that every round starts from."""
        self._write(START, settings=dict(self.settings), state=dict(state))

    def read_round(self, number: int, masks: Mapping[str, Tensor]) -> Finished | None:
        """A finished round; None if there is none.

        Args:
            number: which one.
            masks: those that follow from the round before.
        Raises:
            ValueError: it was trained with other masks, or its file is damaged.
        """
        name = ROUND.format(number)
        if (found := self._read(name, "masks", "trained", "seconds", "result", "generator")) is None:
            return None
        there, trained = found["masks"], found["trained"]
        if there.keys() != masks.keys() or not all(
            torch.equal(there[n], mask.cpu()) and trained[n].numel() == int(there[n].sum())
            for n, mask in masks.items()
        ):
            raise self._damaged(name, "other masks than follow from the round before")
        torch.set_rng_state(found["generator"])
        on = {n: kept.to(masks[n].device) for n, kept in trained.items()}
        return Finished(on, found["seconds"], found["result"])

    def write_round(self, number: int, masks: Mapping[str, Tensor], finished: Finished) -> None:
        """Keep a finished round."""
        self._write(ROUND.format(number), masks=dict(masks), **vars(finished))

    def _read(self, name: str, *keys: str) -> dict[str, Any] | None:
        if self.path is None or not (file := self.path / name).exists():
            return None
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            # Whatever torch and pickle raise for what they cannot read.
            raise self._damaged(name, f"what cannot be read ({type(error).__name__})") from error
        if not isinstance(content, dict) or content.keys() != set(keys):
            raise self._damaged(name, "something else")
        return content

    def _write(self, name: str, **content: Any) -> None:
        if self.path is None:
            return
        torch.save({**content, "generator": torch.get_rng_state()}, written := io.BytesIO())
        files.write(self.path / name, written.getvalue())

    def _damaged(self, name: str, got: str) -> ValueError:
        assert self.path is not None
        return ValueError(
            f"lottery_ticket: expected a part of a search in {self.path / name}, got {got}; delete it "
            "and the files of later rounds to train these again"
        )


@contextlib.contextmanager
def alone(lock: Path, caller: str) -> Iterator[None]:
    """Keep other processes out of a folder; a kill ends that as well.

    Args:
        lock: file in the folder, which is made if need be.
        caller: who says what is wrong.
    Raises:
        BlockingIOError: another process works there.
        OSError: the folder cannot be written to.
    """
    # Says what is wrong with the folder, and makes it.
    files.check(lock)
    held = filelock.FileLock(lock, timeout=0)
    try:
        held.acquire()
    except filelock.Timeout:
        raise BlockingIOError(
            f"{caller}: expected no other process to work in {lock.parent}, but one does; wait until it "
            "has finished, or give another folder"
        ) from None
    try:
        yield
    finally:
        held.release()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, also those that ``state_dict`` leaves out."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def fingerprint(model: nn.Module) -> str:
    """First digits of the SHA-256 of all parameters and buffers: names, dtypes, shapes and bits."""
    digest = hashlib.sha256()
    for name, tensor in state_of(model).items():
        digest.update(f"{name} {_form(tensor)} ".encode())
        bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(bits.numpy().tobytes())
    return digest.hexdigest()[:16]


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype
