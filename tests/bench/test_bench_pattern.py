from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from matplotlib.image import imread

from bench import pattern
from sparseprune.experiments.mosaic.theme import THEMES


def test_panels_hold_as_many_weights_and_are_drawn_as_wide_as_a_page(tmp_path: Path) -> None:
    panels, moves = pattern.networks("digits", epochs=2, every=2, seed=0)
    # Of 12 steps the first 9 may.
    assert moves == 4
    assert [panel.title for panel in panels] == ["the data", "before: random", "after SET", "after RigL"]
    _, before, *after = (panel.pixels for panel in panels)
    for pixels in after:
        assert pixels.sum() == before.sum()
        assert (pixels != before).any()
    for theme in THEMES:
        pattern.draw(panels, "headline", "note", path := tmp_path / f"picture{theme.suffix}.png", theme)
        assert imread(path).shape[1] == 1660
