"""Compiled models run in eager mode where layers are to tell what they see."""

from typing import Any

import torch


class Eager:
    """A switch; as long as one is on, nothing that is compiled runs. Several may be on at once."""

    _on = 0
    _stance: Any = None

    def __init__(self) -> None:
        self._is_on = False

    def on(self) -> None:
        if not self._is_on:
            self._is_on = True
            if Eager._on == 0:
                Eager._stance = torch.compiler.set_stance("force_eager")
            Eager._on += 1

    def off(self) -> None:
        if self._is_on:
            self._is_on = False
            Eager._on -= 1
            if Eager._on == 0:
                Eager._stance.__exit__(None, None, None)
                Eager._stance = None
