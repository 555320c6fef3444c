"""``sparseprune prune``: make masks for a model and data."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

import sparseprune as sp
from sparseprune import comparison, models
from sparseprune.cli import mask_file, options
from sparseprune.cli.progress import Bars, Watched
from sparseprune.data import load


def prune(
    out: Annotated[Path | None, typer.Option("--out", help="File to save the masks in (torch.save).")] = None,
    method: Annotated[
        str, typer.Option("--method", help="Pruning method, such as snip, grasp, random.")
    ] = "snip",
    sparsity: options.Sparsity = 0.9,
    block: options.Block = "1",
    scope: options.Scope = "global",
    prune_batches: options.PruneBatches = comparison.PRUNE_BATCHES,
    data: options.Data = "mnist5k",
    data_dir: options.DataDir = None,
    model: options.Model = "wide_mlp",
    batch_size: options.BatchSize = 256,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Score the initial weights of a network on training data, keep the best, and save the masks."""
    (shape,) = options.parse_blocks(block)
    label = comparison.label_of(method, sparsity, shape)
    with Bars() as bars:
        bars.begin(f"load {data}")
        dataset = load(data, data_dir)
        bars.say(f"data: {dataset.name} from {dataset.source}")
        sizes = models.layer_sizes(model, dataset.features, dataset.classes)
        network = models.build(sizes, seed)
        scored = comparison.prune_set(dataset, prune_batches, batch_size, seed)
        bars.begin(f"score: {method}")
        start = time.perf_counter()
        masks = sp.prune(
            network,
            Watched(scored, bars),
            method=method,
            sparsity=sparsity,
            scope=scope,
            block=shape,
            seed=seed,
        )
        seconds = time.perf_counter() - start
        bars.end(f"prune: {label}", f"{len(scored)} batches, {seconds:.2f} s")
    summary = sp.summary(sp.sparsify(network, masks, batch_size=batch_size))
    if out is not None:
        mask_file.save(out, masks, sizes=sizes, seed=seed, method=method, sparsity=sparsity, block=shape)
    if as_json:
        result = {
            "model": model,
            "data": dataset.name,
            "method": method,
            "sparsity": sparsity,
            "block": comparison.block_text(shape),
            "scope": scope,
            "source": dataset.source,
            "sizes": sizes,
            "seed": seed,
            "prune_batches": len(scored),
            "prune_seconds": seconds,
            "out": None if out is None else str(out),
            "summary": summary.to_dict(),
        }
        typer.echo(json.dumps(result))
        return
    typer.echo(str(summary))
    if out is not None:
        typer.echo(f"masks saved in {out}")
