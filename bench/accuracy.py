"""``python -m bench.accuracy``: what pruning before training costs in accuracy, over several seeds.

Trains dense, small dense and pruned networks (`sparseprune.experiments.compare`), at equal epochs and for as
long as dense takes. Each model and seed has its file, written as soon as it is done; what is there is not
run again. A table of all files of the folder is written beside them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bench import seeds as several
from bench.report.markdown import MARKED, fill, marked
from sparseprune.experiments.compare.run import compare
from sparseprune.experiments.data import load
from sparseprune.experiments.watcher import Watcher
from sparseprune.format import files

FOLDER = Path(__file__).parent / "results" / "accuracy"
# Settings of a file that must agree with what is asked for, or it would be another experiment.
EXPERIMENT = ("epochs", "budget", "batch_size", "optimizer", "lr", "prune_batches", "scope")


def main(
    models: Annotated[str, typer.Option("--models", help="Commas between.")] = "lenet5_caffe,resnet8",
    seeds: Annotated[str, typer.Option("--seeds", help="Commas between.")] = "0,1,2",
    methods: Annotated[str, typer.Option("--methods", help="Commas between.")] = "snip,grasp,random",
    sparsities: Annotated[str, typer.Option("--sparsities", help="Commas between.")] = "0.9,0.95,0.98",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the data.")] = 4,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Training samples.")] = 20_000,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples per step.")] = 128,
    optimizer: Annotated[str, typer.Option("--optimizer", help="adam or sgd.")] = "sgd",
    data: Annotated[str, typer.Option("--data", help="See sparseprune compare.")] = "fashion-mnist",
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="See sparseprune compare.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Processor threads.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = FOLDER,
) -> None:
    """Run what is missing in the folder, and write the table."""
    if threads is not None:
        torch.set_num_threads(threads)
    files.check(out / "README.md")
    dataset = load(data, data_dir, samples)
    for model in models.split(","):
        for seed in map(int, seeds.split(",")):
            file = out / f"{model}-seed-{seed}.json"
            if file.is_file():
                print(f"{file.name} is there; delete it to run it again", file=sys.stderr)
                continue
            result = compare(
                dataset,
                model,
                methods=methods.split(","),
                sparsities=[float(number) for number in sparsities.split(",")],
                epochs=epochs,
                seconds="dense",
                batch_size=batch_size,
                optimizer=optimizer,
                seed=seed,
                shuffled=True,
                watcher=_Lines(f"{model}, seed {seed}"),
            )
            files.write(file, json.dumps(result.to_dict(), indent=1) + "\n")
            write_page(out)
    write_page(out)


def write_page(folder: Path) -> None:
    """Write README.md: a table of each model in the folder, the command and the machine.

    A README.md that is there already keeps its words: its tables alone are replaced.

    Args:
        folder: holds MODEL-seed-N.json.
    Raises:
        ValueError: files of one model were made with different settings or data.
    """
    by_model: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*-seed-*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        found = by_model.setdefault(content["model"]["name"], [])
        if found and experiment(content) != experiment(found[0]):
            raise ValueError(
                f"bench.accuracy: expected all seeds of a model to be run alike, got {experiment(content)} "
                f"in {file} and {experiment(found[0])} in another; delete one of them, or give another --out"
            )
        found.append(content)
    sections = {f"{folder.name} {model}": section(found) for model, found in by_model.items()}
    page = folder / "README.md"
    text = fill(page.read_text(encoding="utf-8") if page.is_file() else PAGE, sections.get)
    there = {found["name"] for found in MARKED.finditer(text)}
    for name, content in sections.items():
        if name not in there:
            text += f"\n## {name.removeprefix(folder.name).strip()}\n\n{marked(name, content)}\n"
    files.write(page, text)


def section(comparisons: list[dict[str, Any]]) -> str:
    """All seeds of a model: table, what the figures depend on, and the command."""
    return f"{several.table(comparisons)}\n\n{facts(comparisons)}\n\n```\n{command(comparisons)}\n```"


PAGE = """# Accuracy of networks pruned before training

Mean ± one standard deviation over the seeds. *total s*: wall-clock seconds of pruning and
training, evaluation excluded; *÷ dense*: over dense's. *accuracy % in dense's time*: trained anew, for as
long as dense took, pruning included. *small dense*: a narrower network with as many weights as the sparse one
keeps. *random*: a random mask. *shuffled*: as many weights in every layer as the method keeps there, anywhere
in it. *MFLOP/step*: products of one training step, kept weights only.
"""


def experiment(content: Mapping[str, Any]) -> dict[str, Any]:
    """What two files must have in common to be seeds of one experiment."""
    return {
        "data": content["data"],
        **{name: content["settings"][name] for name in EXPERIMENT},
        "networks": [run["label"] for run in content["runs"]],
    }


def facts(comparisons: list[dict[str, Any]]) -> str:
    """What the figures depend on: data, settings, command, machine."""
    first = comparisons[0]
    data, settings, machine = first["data"], first["settings"], first["machine"]
    numbers = ",".join(str(one["settings"]["seed"]) for one in comparisons)
    return (
        f"{data['train']:,} training and {data['test']:,} test samples of {data['name']}, "
        f"epochs {settings['epochs']}, batch {settings['batch_size']}, {settings['optimizer']}, "
        f"lr {settings['lr']:g}, {settings['prune_batches']} batches scored, seeds {numbers}; "
        f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}, torch {machine['torch']}, "
        f"sparseprune {machine['sparseprune']}, {machine['date']}."
    )


def command(comparisons: list[dict[str, Any]]) -> str:
    """The command that makes these files (and its defaults, spelled out)."""
    first = comparisons[0]
    settings = first["settings"]
    pruned = [run for run in first["runs"] if run["kind"] == "sparse" and "shuffled" not in run["method"]]
    options = {
        "models": first["model"]["name"],
        "seeds": ",".join(str(one["settings"]["seed"]) for one in comparisons),
        "methods": ",".join(dict.fromkeys(run["method"] for run in pruned)),
        "sparsities": ",".join(dict.fromkeys(f"{run['sparsity']:g}" for run in pruned)),
        "epochs": settings["epochs"],
        "samples": first["data"]["train"],
        "batch-size": settings["batch_size"],
        "optimizer": settings["optimizer"].split()[0].lower(),
        "data": first["data"]["name"],
        "threads": first["machine"]["threads"],
    }
    return "python -m bench.accuracy " + " ".join(f"--{name} {value}" for name, value in options.items())


class _Lines(Watcher):
    def __init__(self, heading: str) -> None:
        self.heading, self.progress = heading, ""

    def begin(self, task: str, number: int, count: int) -> None:
        self.progress = f"{number}/{count}"

    def end(self, task: str, outcome: str) -> None:
        print(f"{self.heading}, {self.progress}: {task}: {outcome}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
