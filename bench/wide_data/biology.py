"""Genes of muscle cells and alleles of people, as packages of R ship them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from bench.wide_data import apt
from bench.wide_data.prepared import Prepared, split


def muscle_cells(folder: Path, seed: int) -> Prepared:
    """Gene expression of single cells that become muscle; the label is the hour when they were taken.

    Inputs are log(1 + FPKM) over each gene's largest among training cells, of genes that one of these
    expresses.

    Args:
        folder: where lists of packages and the package may lie.
        seed: seed of the split.
    Raises:
        ModuleNotFoundError: rdata is not installed.
        FileNotFoundError, OSError: see apt.py.
    Reference:
        Trapnell and others, "The dynamics and regulators of cell fate decisions are revealed by
        pseudotemporal ordering of single cells", Nature Biotechnology 32, 2014.
    """
    root, archive = apt.unpack(folder, "r-bioc-hsmmsinglecell")
    expression, sheet, annotation = (
        read_r(root, f"HSMMSingleCell/data/{name}.rda", name)
        for name in ("HSMM_expr_matrix", "HSMM_sample_sheet", "HSMM_gene_annotation")
    )
    genes, cells = (expression.coords[name].to_numpy() for name in expression.dims)
    hours = sheet.loc[cells, "Hours"].astype(int).to_numpy()
    classes = sorted(set(hours))
    labels = np.searchsorted(classes, hours)
    values = np.log1p(expression.to_numpy().T).astype(np.float32)
    parts = split(labels, np.arange(len(labels)), seed)
    largest = values[parts.train].max(0)
    expressed = largest > 0
    scaled = sparse.csr_matrix(values[:, expressed] / largest[expressed])
    names = annotation.loc[genes, "gene_short_name"].astype(str).to_numpy()[expressed]
    return Prepared(
        scaled[parts.train],
        labels[parts.train],
        scaled[parts.test],
        labels[parts.test],
        parts.validation,
        list(names),
        [f"{hour} h" for hour in classes],
        {
            "what": "gene expression of single cells, labelled by the hour when they were taken",
            "taken from": [archive, *apt.release(folder)],
            "cells": len(labels),
            "genes": len(genes),
        },
    )


def genotypes(folder: Path, seed: int) -> Prepared:
    """How often people have each allele of 678 microsatellites, 0 to 2; the label is their population, of 79.

    Genotypes that were not read count as no allele.

    Args, Raises: see `muscle_cells`.
    Reference:
        Rosenberg and others, "Clines, clusters, and the effect of study design on the inference of human
        population structure", PLoS Genetics 1, 2005; Wang and others, "Genetic variation and population
        structure in Native Americans", PLoS Genetics 3, 2007.
    """
    root, archive = apt.unpack(folder, "r-cran-adegenet")
    found = read_r(root, "adegenet/data/eHGDP.rda", "eHGDP")
    counts = np.nan_to_num(found.tab.to_numpy()).astype(np.float32)
    labels = np.asarray(found.pop.codes).astype(np.int64)
    populations = found.other["popInfo"].set_index("Label")["Population"]
    alleles = [f"{locus}.{name}" for locus, names in found.__dict__["all.names"].items() for name in names]
    parts = split(labels, np.arange(len(labels)), seed)
    x = sparse.csr_matrix(counts)
    return Prepared(
        x[parts.train],
        labels[parts.train],
        x[parts.test],
        labels[parts.test],
        parts.validation,
        alleles,
        [str(populations[int(label)]) for label in found.pop.categories],
        {
            "what": "alleles of 678 microsatellites, labelled by population",
            "taken from": [archive, *apt.release(folder)],
            "people": len(labels),
        },
    )


def read_r(root: Path, file: str, name: str) -> Any:
    """An object of a file of R.

    Args:
        root: folder of an unpacked package.
        file: path of the file in R's library.
        name: the object's name.
    Raises:
        ModuleNotFoundError: rdata is not installed.
    """
    try:
        import rdata
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"prepare: module {error.name} is not installed; pip install rdata, which reads files of R"
        ) from error
    with warnings.catch_warnings():
        # Classes of R that it does not know come as plain objects, which is all that is needed.
        warnings.filterwarnings("ignore", "Missing constructor for R class")
        return rdata.read_rda(root / "usr/lib/R/site-library" / file)[name]
