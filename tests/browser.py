"""A look at a page in a browser: is all drawn, told and as wide as the screen, and nothing wrong?"""

import html
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (390, 1400)  # pixels: a phone, a screen
GROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 30)"}
SCHEMES = {"dark": 0, "light": 1}  # as Chromium's settings have them
# Of every frame: the charts at first, then with another choice and the pointer on a point.
LOOK = """<script>
setTimeout(async () => {
  const wait = () => new Promise((done) => setTimeout(done, 2000));
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, size = page.documentElement, seen = document.createElement("p");
    const drawn = () => page.querySelectorAll("section:not([hidden]) svg").length;
    const before = drawn(), select = page.querySelector("select");
    select.value = select.options[select.options.length - 1].value;
    select.dispatchEvent(new Event("change"));
    await wait();
    const point = page.querySelector("#chart-1 .mark-symbol.role-mark path");
    const at = point.getBoundingClientRect();
    point.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: at.x, clientY: at.y}));
    seen.textContent = [
      before, drawn(), size.scrollWidth - size.clientWidth, getComputedStyle(page.body).backgroundColor,
      page.getElementById("vg-tooltip-element").textContent,
    ].join("|");
    document.body.append(seen);
  }
}, 4000);
</script>"""


class Seen(NamedTuple):
    """Charts at first and with the last option of the first choice, and what is told of a point."""

    charts: int
    of_choice: int
    row: str


def look(page: str, scheme: str, folder: Path) -> Seen:
    """Show a page on a phone and a screen, in a colour scheme; it must be the same on both."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on the PATH")
    frames = (
        f'<iframe width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>' for width in WIDTHS
    )
    file = folder / "frames.html"
    file.write_text(f"<!DOCTYPE html><body>{''.join(frames)}{LOOK}", encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    options += ["--window-size=1800,1000", "--virtual-time-budget=20000"]
    options += [
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
        f"--user-data-dir={folder / 'user'}",
    ]
    result = subprocess.run([browser, *options, file.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in result.stderr
    seen = [line.split("|") for line in re.findall(r"<p>(\d+\|.*?)</p>", result.stdout)]
    assert len(seen) == len(WIDTHS), result.stderr
    for _, _, overflow, ground, _ in seen:
        assert overflow == "0"
        assert ground == GROUNDS[scheme]
    phone, screen = (Seen(int(before), int(after), row) for before, after, _, _, row in seen)
    assert phone == screen
    return screen
