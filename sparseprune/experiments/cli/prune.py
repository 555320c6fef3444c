"""``sparseprune prune``: make masks for a model and data."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

import sparseprune as sp
from sparseprune.cost.speedup import TimedMasks
from sparseprune.experiments import models
from sparseprune.experiments.cli import inputs, mask_file, options, tables
from sparseprune.experiments.cli.advice import advice
from sparseprune.experiments.cli.progress import Bars, Watched
from sparseprune.experiments.data import FirstBatches
from sparseprune.experiments.networks import PRUNE_BATCHES, block_text, label_of, sparsity_of
from sparseprune.format import files
from sparseprune.scores import rounds_of


def prune(
    out: Annotated[
        Path | None, typer.Option("--out", help="File to save the masks in (safetensors).")
    ] = None,
    method: options.MethodName = "snip",
    sparsity: options.Sparsity = None,
    flops: Annotated[
        float | None,
        typer.Option("--flops", help="In its place: fraction of a training step's operations that stays."),
    ] = None,
    speedup: Annotated[
        float | None,
        typer.Option("--speedup", help="Or: how many times faster than dense a training step is to be here."),
    ] = None,
    block: options.BlockOrName = "1",
    scope: options.ScopeOrNone = None,
    pattern: options.Pattern = None,
    keep: options.Keep = [],  # noqa: B006
    min_per_layer: options.MinPerLayer = 0,
    rounds: options.Rounds = None,
    preset: options.Preset = "paper",
    prune_batches: options.PruneBatches = PRUNE_BATCHES,
    data: options.Data = "mnist5k",
    data_args: options.DataArgs = "{}",
    data_dir: options.DataDir = None,
    samples: options.Samples = None,
    model: options.Model = "wide_mlp",
    model_args: options.ModelArgs = "{}",
    batch_size: options.BatchSize = 256,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Score the initial weights of a network on training data, keep the best, and save the masks."""
    shape = options.parse_block_or_name(block)
    if out is not None:
        files.check(out)
    with Bars() as bars:
        dataset, network = inputs.load(bars, data, data_dir, samples, model, model_args, data_args)
        dense = models.build(network, seed)
        scored = FirstBatches(dataset, batch_size, seed, prune_batches)
        bars.begin(f"score: {method}")
        start = time.perf_counter()
        masks = sp.prune(
            dense,
            Watched(scored, bars, rounds_of(method, rounds)),
            method=method,
            sparsity=sparsity,
            flops=flops,
            speedup=speedup,
            input_size=dataset.sample,
            batch_size=batch_size,
            scope=scope,
            block=shape,
            pattern=pattern,
            keep=keep,
            rounds=rounds,
            preset=preset,
            min_per_layer=min_per_layer,
            seed=seed,
        )
        seconds = time.perf_counter() - start
        if sparsity is None:
            sparsity = sparsity_of(masks)
        label = label_of(method, sparsity, shape)
        bars.end(f"prune: {label}", f"{len(scored)} batches, {seconds:.2f} s")
    sparse = sp.sparsify(dense, masks, batch_size=batch_size, input_size=dataset.sample)
    summary = sp.summary(sparse, input_size=dataset.sample)
    found = masks.speedup if isinstance(masks, TimedMasks) else None
    told = advice(summary, found)
    try:
        if out is not None:
            mask_file.save(
                out, masks, network=network, seed=seed, method=method, sparsity=sparsity, block=shape
            )
    finally:
        # Also where nothing could be written.
        if as_json:
            result = {
                "network": network.to_dict(),
                "data": dataset.name,
                "method": method,
                "sparsity": sparsity,
                "block": block_text(shape),
                "flops": flops,
                "speedup": None if found is None else found._asdict(),
                "scope": scope,
                "pattern": pattern,
                "rounds": rounds_of(method, rounds),
                "preset": preset,
                "source": dataset.source,
                "seed": seed,
                "prune_batches": len(scored),
                "prune_seconds": seconds,
                "out": None if out is None else str(out),
                "summary": summary.to_dict(),
                "advice": told,
            }
            typer.echo(json.dumps(result))
        else:
            typer.echo(str(summary))
            if found is not None:
                typer.echo(
                    f"a training step: {found.dense_seconds * 1e3:.3g} ms dense, "
                    f"{found.sparse_seconds * 1e3:.3g} ms sparse: {found.measured:.3g} times faster "
                    f"(asked for: {found.promised:g})"
                    + (f", disturbed: {found.disturbed}" if found.disturbed else "")
                )
            if told is not None:
                typer.echo(told)
    if out is not None and not as_json:
        typer.echo(f"masks saved in {tables.shown(out)}")
