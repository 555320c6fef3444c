"""Tables of speed, from the committed runs of `bench.run`."""

from __future__ import annotations

from bench.report.markdown import factor, pipe, two_digits
from bench.report.tables.registry import CONV_RUN, LINEAR_RUN, PEERS_RUN, RESULTS, run, table, transformer_run
from bench.report.terminal import losses
from bench.rows import Row, best_dense, speedup_over
from bench.targets import TRANSFORMER_BLOCKS, training_bytes
from bench.workloads import BASE_WIDTH, BASELINES, SEQUENCES

FLOAT32, BFLOAT16 = best_dense("float32"), best_dense("bfloat16")
DENSITIES = ("0.20", "0.10", "0.05", "0.02")
HIGH = DENSITIES[1:]
THREADS = 2
CONV_SHAPES = {
    "64→64 @32×32": "64x64@32x32",
    "256→256 @16×16": "256x256@16x16",
    "512→512 @4×4": "512x512@4x4",
}
NETWORKS = {"VGG-16-bn": "vgg16_bn", "ResNet-18": "resnet18"}


def percent(density: str) -> str:
    """A density as the sparsity that people name."""
    return f"{100 * (1 - float(density)):.0f} %"


def row(file: str, workload: str, threads: int = THREADS, contender: str = "") -> Row | None:
    """The row of a workload, by its id; sparseprune's by default; None where it was not measured."""
    results = run(file)
    name = f"{workload}/threads={threads}/{contender or results.header['contender']}"
    return next((found for found in results.rows if found.id == name), None)


def speed(file: str, workload: str, over: str, threads: int = THREADS) -> float | None:
    """Speed-up of sparseprune in a workload, by its id; None where it was not measured."""
    found = row(file, workload, threads)
    return None if found is None else speedup_over(found, over)


def speeds(file: str, workload: str, over: str = FLOAT32, densities: tuple[str, ...] = HIGH) -> list[str]:
    """Cells of a line: the speed-ups at these densities, which replace {} in the id."""
    return [factor(speed(file, workload.format(density), over)) for density in densities]


def step(shape: str, block: int = 1) -> str:
    return f"linear-step/{shape}/density={{}}/n=256{_block(block)}/float32"


def forward(shape: str, block: int = 1) -> str:
    """Row-major; of blocks batch-inner."""
    return f"linear-forward/{shape}/density={{}}/n=256{_block(block)}/float32{'/batch-inner' * (block > 1)}"


def conv_step(shape: str, kernel: int = 3) -> str:
    return f"conv-step/{shape}-{kernel}x{kernel}/density={{}}/n=32/float32/batch-inner"


def network_step(model: str, mask: str = "uniform", block: int = 1) -> str:
    return f"network-step/{model}@3x32x32/density={{}}/n=64{_block(block)}/float32/{mask}/sgd"


def transformer_step(model: str) -> str:
    batch, tokens = SEQUENCES[model]
    shape = f"{model}@{TRANSFORMER_BLOCKS}x{tokens}x{BASE_WIDTH}"
    return f"transformer-step/{shape}/density={{}}/n={batch}/float32/random-layer/adamw-fused"


def _block(block: int) -> str:
    return f"/block={block}" if block > 1 else ""


def machine(file: str) -> str:
    """The machine and the threads of a run, in a line."""
    facts = run(file).header["machine"]
    return f"{facts['cpu']}, {THREADS} threads, {facts['isa']}, torch {facts['torch']}, {facts['date']}"


@table("headline")
def headline() -> str:
    conv = CONV_SHAPES["256→256 @16×16"]
    small = step("1024x1024")
    lines = [
        ["linear layer 1024×1024", *speeds(LINEAR_RUN, small)],
        ["linear layer 4096×4096", *speeds(LINEAR_RUN, step("4096x4096"))],
        ["3×3 convolution 256→256 @16×16", *speeds(CONV_RUN, conv_step(conv))],
        ["VGG-16-bn", *speeds(CONV_RUN, network_step("vgg16_bn"))],
        ["ResNet-18", *speeds(CONV_RUN, network_step("resnet18"))],
        ["ResNet-18, global SNIP masks", *speeds(CONV_RUN, network_step("resnet18", "snip"))],
        ["linear layer 1024×1024, over dense bfloat16", *speeds(LINEAR_RUN, small, BFLOAT16)],
    ]
    more = ""
    bert = transformer_run("bert")
    if (RESULTS / bert).exists():
        lines.insert(-1, ["three blocks of BERT-base, AdamW", *speeds(bert, transformer_step("bert"))])
        more = f" Blocks of BERT: {machine(bert)}."
    return "\n\n".join(
        [
            pipe(["training step, speed-up over dense float32", *map(percent, HIGH)], lines),
            f"{machine(LINEAR_RUN)}. Random masks of the same sparsity in every layer, unless SNIP is named. "
            f"Over the fastest dense contender in the same run; below 1× sparse is slower.{more}",
        ]
    )


@table("linear")
def linear() -> str:
    lines = []
    for shape in ("1024x1024", "4096x4096"):
        small = shape == "1024x1024"
        lines += [
            [f"training step {_times(shape)}, over best dense float32", step(shape), FLOAT32],
            ["... over best dense bfloat16", step(shape), BFLOAT16],
        ]
        lines += [["... in 4×1 blocks, over best dense float32", step(shape, 4), FLOAT32]] if small else []
    for shape in ("1024x1024", "4096x4096"):
        small = shape == "1024x1024"
        lines += [[f"forward {_times(shape)}, over best dense float32", forward(shape), FLOAT32]]
        lines += [["... over best dense bfloat16", forward(shape), BFLOAT16]] if small else []
        lines += [["... in 4×1 blocks, over best dense float32", forward(shape, 4), FLOAT32]]
    cells = [[words, *speeds(LINEAR_RUN, work, over, DENSITIES)] for words, work, over in lines]
    return pipe(["float32, 2 threads, random masks", *map(percent, DENSITIES)], cells)


@table("one-sample")
def one_sample() -> str:
    work = "linear-forward/4096x4096/density=0.10/n=1/float32"
    cells = [factor(speed(LINEAR_RUN, work, FLOAT32, threads)) for threads in (1, 2)]
    return pipe(
        ["forward, one sample, over best dense float32", "1 thread", "2 threads"],
        [["4096×4096, 90 %", *cells]],
    )


@table("wide-network")
def wide_network() -> str:
    """The network of 40,000 inputs. numpy has one thread: the faster of its two measurements counts."""
    article = "40000-1000-1000-1000-10/density=0.02/n=256/float32"
    step_id, prune_id = f"model-step/{article}/random/adam-fused", f"prune/{article}/snip/adam-fused"
    topk_id = "topk/42.1M/density=0.02/float32"
    numpy = [row(LINEAR_RUN, topk_id, threads, "numpy-partition") for threads in (1, 2)]
    times = {
        "training step, Adam (fused)": (_seconds(step_id), _seconds(step_id, "dense-float32")),
        "pruning: SNIP, select, build; dense: three training steps": (
            _seconds(prune_id),
            _seconds(prune_id, "dense-float32"),
        ),
        "masks of its 42.1 M scores; `numpy.partition`: their threshold alone": (
            _seconds(topk_id),
            min(found.seconds for found in numpy if found and found.seconds),
        ),
    }
    lines = [
        [words, f"{1e3 * mine:.0f} ms", f"{1e3 * theirs:.0f} ms", factor(theirs / mine)]
        for words, (mine, theirs) in times.items()
    ]
    sparse, dense = row(LINEAR_RUN, step_id), row(LINEAR_RUN, step_id, contender="dense-float32")
    assert sparse is not None
    assert dense is not None
    mine, theirs = training_bytes(sparse), training_bytes(dense)
    memory = "parameters, gradients, optimizer state"
    lines.insert(1, [memory, f"{mine / 1e6:.0f} MB", f"{theirs / 1e6:.0f} MB", factor(theirs / mine)])
    return pipe(["40000-1000-1000-1000-10, 98 %, 2 threads", "sparse", "dense", "÷"], lines)


def _seconds(workload: str, contender: str = "") -> float:
    found = row(LINEAR_RUN, workload, contender=contender)
    assert found is not None
    assert found.seconds is not None
    return found.seconds


@table("peers")
def peers() -> str:
    lines = []
    for words, kind in (("training step", "linear-step"), ("forward", "linear-forward")):
        for name, contender in {
            "sparseprune": "",
            "SparseProp 0.1.14": "sparseprop",
            "MKL sparse": "mkl-sparse",
            "torch CSR": "torch-csr",
            "dense: `nn.Linear`": "dense-float32",
        }.items():
            found = [
                row(PEERS_RUN, f"{kind}/1024x1024/density={density}/n=256/float32", contender=contender)
                for density in ("0.10", "0.05")
            ]
            if all(found):
                times = [two_digits(1e3 * one.seconds) for one in found if one and one.seconds]
                lines.append([f"{words}, {name}", *times])
    return pipe(["1024×1024, 2 threads, ms", "90 %", "95 %"], lines)


@table("convolutions")
def convolutions() -> str:
    lines = []
    for name, model in NETWORKS.items():
        lines += [
            [f"{name}, batch 64, uniform sparsity", network_step(model)],
            ["... in 4×1 blocks", network_step(model, block=4)],
            ["... global SNIP", network_step(model, "snip")],
        ]
    for name, shape in CONV_SHAPES.items():
        lines.append([f"3×3 convolution {name}, batch 32", conv_step(shape)])
    lines.append(["1×1 convolution 256→256 @16×16, batch 32", conv_step("256x256@16x16", 1)])
    cells = []
    for words, work in lines:
        pairs = zip(speeds(CONV_RUN, work), speeds(CONV_RUN, work, BFLOAT16), strict=True)
        cells.append([words, *(f"{one} ({other})" if one else "" for one, other in pairs)])
    return pipe(["training step", *map(percent, HIGH)], cells)


@table("convolutions-other")
def convolutions_other() -> str:
    """NCHW in and out; one sample."""
    nchw = "conv-step/{}-3x3/density=0.10/n=32/float32"
    single = "conv-forward/{}-3x3/density=0.05/n=1/float32"
    lines = [
        [words, *(factor(speed(CONV_RUN, work.format(shape), FLOAT32)) for shape in CONV_SHAPES.values())]
        for words, work in (
            ("step, 90 %, NCHW input and output, batch 32", nchw),
            ("forward, 95 %, one sample", single),
        )
    ]
    return pipe(["3×3 convolution, over best dense float32", *CONV_SHAPES], lines)


@table("snip-operations")
def snip_operations() -> str:
    """Multiplications that global SNIP keeps."""
    lines = []
    for name, model in NETWORKS.items():
        found = [row(CONV_RUN, network_step(model, "snip").format(density)) for density in HIGH]
        lines.append([name, *(f"{100 * one.kept_flops / one.dense_flops:.0f} %" for one in found if one)])
    return pipe(["multiplications that global SNIP keeps", *map(percent, HIGH)], lines)


@table("losses")
def all_losses() -> str:
    """Every case of both runs on two threads in which sparseprune is slower than dense."""
    lines = []
    for file in (LINEAR_RUN, CONV_RUN):
        results = run(file)
        measured = [found for found in results.rows if found.threads == THREADS]
        for found, lost in losses(measured, results.header["contender"]):
            work = found.workload
            assert work.kind not in BASELINES
            details = [
                work.dtype,
                *([f"{work.block}×1 blocks"] if work.block > 1 else []),
                *([work.layout] if work.layout == "batch-inner" else []),
                *([f"batch {work.batch}"] if work.batch not in (256, 32) else []),
            ]
            lines.append(
                (lost, [work.kind, _times(work.shape), percent(str(work.density)), ", ".join(details)])
            )
    cells = [[*words, factor(lost)] for lost, words in sorted(lines)]
    return pipe(["2 threads", "shape", "sparsity", "", "speed-up"], cells, texts=4)


def _times(shape: str) -> str:
    return shape.replace("x", "×")
