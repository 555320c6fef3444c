"""``sparseprune train``: train one network, dense or pruned."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Annotated

import torch
import typer

import sparseprune as sp
from sparseprune.cost import machine
from sparseprune.experiments import models
from sparseprune.experiments import train as training
from sparseprune.experiments.cli import inputs, mask_file, options, tables
from sparseprune.experiments.cli.progress import Bars
from sparseprune.experiments.data import FirstBatches
from sparseprune.experiments.networks import PRUNE_BATCHES, block_text, label_of, sparsity_of
from sparseprune.experiments.rewiring import EVERY, REWIRE
from sparseprune.format import files


def train(
    out: Annotated[
        Path | None, typer.Option("--out", help="File to save the checkpoint in (torch.save).")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="Prune with this method first; dense without it and --masks."),
    ] = None,
    sparsity: options.Sparsity = None,
    masks_from: Annotated[
        Path | None,
        typer.Option("--masks", help="Use the masks of this file, from `sparseprune prune --out`."),
    ] = None,
    block: options.OneBlock = "1",
    scope: options.ScopeOrNone = None,
    pattern: options.Pattern = None,
    keep: options.Keep = [],  # noqa: B006
    min_per_layer: options.MinPerLayer = 0,
    rounds: options.Rounds = None,
    preset: options.Preset = "paper",
    rewire: Annotated[
        str | None,
        typer.Option(
            "--rewire",
            callback=lambda value: value if value is None else options.one_of(REWIRE)(value),
            help="Move the masks in the first three quarters of the training: rigl (to the largest "
            "gradients) or set (at random).",
        ),
    ] = None,
    every: options.RewireEvery = EVERY,
    prune_batches: options.PruneBatches = PRUNE_BATCHES,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            min=1,
            max=options.MOST,
            help="Passes over the data; 4 where --budget is not given either.",
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--budget", help="Seconds to train, in place of --epochs.")
    ] = None,
    data: options.Data = "mnist5k",
    data_args: options.DataArgs = "{}",
    data_dir: options.DataDir = None,
    samples: options.Samples = None,
    model: options.Model = "wide_mlp",
    model_args: options.ModelArgs = "{}",
    batch_size: options.BatchSize = 256,
    optimizer: options.OptimizerName = "adam",
    lr: options.LearningRate = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Train one network, dense, or sparse with --method or --masks, and save a checkpoint.

    The checkpoint holds the "state_dict" of an ordinary torch network, zeros in place of the pruned weights,
    and the "masks" with which sparsify() makes it sparse again: with --rewire, those at the end.
    """
    if method is not None and masks_from is not None:
        raise typer.BadParameter("give --method or --masks, not both")
    if rewire is not None and method is None and masks_from is None:
        raise typer.BadParameter("--rewire moves masks: give --method or --masks as well")
    if epochs is not None and seconds is not None:
        raise typer.BadParameter("give --epochs or --budget, not both")
    if epochs is None and seconds is None:
        epochs = 4
    if out is not None:
        files.check(out)
    with Bars() as bars:
        dataset, network = inputs.load(bars, data, data_dir, samples, model, model_args, data_args)
        trained = models.build(network, seed)
        masks = None
        (shape,) = options.parse_blocks(block)
        if masks_from is not None:
            content = mask_file.load(masks_from, network, seed)
            masks, method, sparsity = content["masks"], content["method"], content["sparsity"]
            shape = content["block"]
        elif method is not None:
            scored = FirstBatches(dataset, batch_size, seed, prune_batches)
            masks = sp.prune(
                trained,
                scored,
                method=method,
                sparsity=sparsity,
                input_size=dataset.sample,
                scope=scope,
                block=shape,
                pattern=pattern,
                keep=keep,
                rounds=rounds,
                preset=preset,
                min_per_layer=min_per_layer,
                seed=seed,
            )
            sparsity = sparsity_of(masks) if sparsity is None else sparsity
        if masks is not None:
            trained = sp.sparsify(trained, masks, batch_size=batch_size, input_size=dataset.sample)
        label = "dense" if method is None or sparsity is None else label_of(method, sparsity, shape)
        label += f" + {REWIRE[rewire]}" if rewire else ""
        bars.begin(f"train: {label}")
        result = training.train(
            trained,
            dataset,
            epochs=epochs,
            seconds=seconds,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=lr,
            seed=seed,
            rewire=rewire,
            every=every,
            on_progress=bars.advance,
        )
        bars.end(f"train: {label}", f"{result.epochs:.1f} epochs, {result.seconds:.1f} s")
    if masks is not None:
        masks = {name: mask for name, mask in sp.masks_from_zeros(trained).items() if name in masks}
    facts = {
        "network": network.to_dict(),
        "data": dataset.name,
        "source": dataset.source,
        "method": None if masks is None else method,
        "sparsity": None if masks is None else sparsity,
        "block": None if masks is None else block_text(shape),
        "batch_size": batch_size,
        "optimizer": optimizer,
        "lr": training.learning_rate(optimizer, lr),
        "seed": seed,
        **({"rewire": rewire, "rewire_every": every} if rewire else {}),
    }
    try:
        if out is not None:
            state = sp.densify(trained).state_dict()
            content = {"state_dict": state, "masks": masks, "accuracy": result.accuracy, **facts}
            torch.save(content, checkpoint := io.BytesIO())
            files.write(out, checkpoint.getvalue())
    finally:
        # Also where nothing could be written.
        if as_json:
            figures = {**facts, "machine": machine.facts(), "result": dataclasses.asdict(result)}
            typer.echo(json.dumps({**figures, "out": None if out is None else str(out)}))
        else:
            typer.echo(
                f"{label}: test accuracy {100 * result.accuracy:.2f} % after {result.epochs:.1f} epochs, "
                f"{result.steps} steps, {result.seconds:.1f} s ({1000 * result.step_seconds:.2f} ms per step)"
            )
    if out is not None and not as_json:
        typer.echo(f"checkpoint saved in {tables.shown(out)}")
