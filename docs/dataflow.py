"""Draws dataflow.svg: what becomes of a layer's weights, from the model to the sparse model and back.

python docs/dataflow.py
"""

import random
from pathlib import Path
from xml.sax.saxutils import escape

FILE = Path(__file__).with_name("dataflow.svg")
SIDE, CELL, KEPT = 8, 11, 16  # an 8 x 8 weight of which a quarter stays
LEFT, TEXT, TOP, STEP = 34, 156, 62, 178
WIDTH = 560
# Of each stage the kind of its grid, its name, and what is to be said of it.
STAGES = [
    ("weights", "model, batches", "your network, not yet trained, and a few\nbatches of your training data"),
    ("scores", "scores", "one number for each weight:\nthe higher, the more it matters"),
    ("masks", "masks", "the best of them are kept,\nexactly as many as you asked for"),
    (
        "stored",
        "sparse model",
        "what is kept is all that is stored; your own\ntraining loop and optimizer, unchanged;\n"
        "forward and backward in ops/ and csrc/",
    ),
    ("zeros", "dense model", "an ordinary torch model again,\nwith zeros in place"),
]
ARROWS = [
    ("scores/", "how much does each weight matter?"),
    ("select/", "how many does each layer keep, and which?"),
    ("sp.sparsify", "which layers are faster sparse, on this machine?"),
    ("sp.densify", "or sp.save, for any form of the model"),
]
STYLE = """
  svg { color-scheme: light dark; }
  .page { fill: #fff; stroke: #d5dae1; }
  text { font: 15px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #4b5563; }
  .name { font-size: 18px; font-weight: 600; fill: #111827; }
  .code { font: 600 14px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #1d4ed8; }
  .grid { fill: none; stroke: #d5dae1; }
  .line { fill: none; stroke: #6b7280; stroke-width: 1.5; }
  .head { fill: #6b7280; }
  .up { fill: #2563eb; } .down { fill: #ea580c; } .score { fill: #7c3aed; } .mask { fill: #374151; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #1a1c1e; stroke: #3b4048; }
    text { fill: #b6bec9; }
    .name { fill: #f3f4f6; }
    .code { fill: #8ab4ff; }
    .grid { stroke: #3b4048; }
    .line { stroke: #9aa3af; }
    .head { fill: #9aa3af; }
    .up { fill: #60a5fa; } .down { fill: #fb923c; } .score { fill: #a78bfa; } .mask { fill: #d1d5db; }
  }
"""


def main() -> None:
    FILE.write_text(drawing(), encoding="utf-8")


def drawing() -> str:
    """The picture as SVG; it has colours for light pages and for dark ones."""
    numbers = random.Random(5)
    weights = [[numbers.gauss(0, 1) for _ in range(SIDE)] for _ in range(SIDE)]
    scores = [[abs(w * numbers.gauss(0, 1)) for w in row] for row in weights]
    least = sorted(score for row in scores for score in row)[-KEPT]
    mask = [[score >= least for score in row] for row in scores]
    height = TOP + STEP * (len(STAGES) - 1) + SIDE * CELL + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img">',
        "<title>The way of a layer's weights through sparseprune</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
    ]
    for number, (kind, name, words) in enumerate(STAGES):
        y = TOP + STEP * number
        parts += [text(TEXT, y + 26, name, "name")]
        parts += [text(TEXT, y + 52 + 20 * i, line) for i, line in enumerate(words.split("\n"))]
        parts += grid(kind, LEFT, y, weights, scores, mask)
    for number, (code, question) in enumerate(ARROWS):
        y = TOP + STEP * number + SIDE * CELL
        x = LEFT + SIDE * CELL / 2
        parts += arrow(x, y + 10, STEP - SIDE * CELL - 20)
        parts += [text(TEXT, y + 42, code, "code"), text(TEXT, y + 62, question)]
    # What prune does, from the model to the masks.
    parts += [text(LEFT, 34, "sp.prune", "code"), *bracket(LEFT - 14, 44, TOP + 2 * STEP + SIDE * CELL)]
    return "\n".join([*parts, "</svg>", ""])


Rows = list[list[float]]


def grid(kind: str, x: float, y: float, weights: Rows, scores: Rows, mask: list[list[bool]]) -> list[str]:
    side = SIDE * CELL
    cells = [f'<rect class="grid" x="{x}" y="{y}" width="{side}" height="{side}"/>']
    ranks = sorted(score for row in scores for score in row)
    for row in range(SIDE):
        place = 0
        for col in range(SIDE):
            weight, kept = weights[row][col], mask[row][col]
            strength = min(1.0, 0.15 + abs(weight) / 2)
            sign = "up" if weight > 0 else "down"
            if kind == "weights" or (kind == "zeros" and kept):
                cells.append(cell(x, y, row, col, sign, strength))
            elif kind == "scores":
                share = ranks.index(scores[row][col]) / len(ranks)
                cells.append(cell(x, y, row, col, "score", 0.05 + 0.95 * share**2))
            elif kind == "masks" and kept:
                cells.append(cell(x, y, row, col, "mask", 1))
            elif kind == "stored" and kept:
                cells.append(cell(x, y, row, place, sign, strength))
                place += 1
    return cells


def cell(x: float, y: float, row: int, col: int, colour: str, opacity: float) -> str:
    return (
        f'<rect class="{colour}" x="{x + col * CELL + 0.5}" y="{y + row * CELL + 0.5}" width="{CELL - 1}" '
        f'height="{CELL - 1}" opacity="{opacity:.2f}"/>'
    )


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(words)}</text>'


def arrow(x: float, y: float, length: float) -> list[str]:
    end = y + length
    return [
        f'<path class="line" d="M{x} {y}V{end - 8}"/>',
        f'<path class="head" d="M{x - 5} {end - 9}h10l-5 9z"/>',
    ]


def bracket(x: float, top: float, bottom: float) -> list[str]:
    return [f'<path class="line" d="M{x + 8} {top}h-8V{bottom}h8"/>']


if __name__ == "__main__":
    main()
