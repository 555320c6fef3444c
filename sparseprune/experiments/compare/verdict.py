"""What follows from a comparison, in a sentence or two: which network to take."""

from __future__ import annotations

from collections.abc import Sequence

from sparseprune.experiments.compare.results import Run

MORE_ACCURATE = 0.003  # accuracy (0 ... 1) below which two networks are equally good
NO_MORE_TIME = 1.05  # ratio of seconds up to which one takes no longer than the other
FASTER = 0.8  # ratio of seconds from which of two equally good networks one is the better
VIEWS = {"epochs": "at equal epochs", "time": "at equal time"}
DENSE = ("dense", "small dense")
NO_DIFFERENCE = "there is no clear difference between sparse and dense networks"
# What is no network of the same kind on the same inputs: said beside the verdict, not in it.
BESIDE = {"screened": "A dense network on inputs chosen beforehand", "conv": "A convolutional network"}


def verdict(runs: Sequence[Run]) -> list[str]:
    """Whether a sparse network or a dense one did better, from the measured figures alone.

    A dense network, narrow or not, wins where it does better than the most accurate sparse one, see `better`,
    and no sparse one does better than it. A sparse network wins where it does better than the dense one, and
    either does better than every narrow one, too, or is more accurate. Anything else is no clear difference.

    Args:
        runs: the runs of a comparison, of one seed.
    Returns:
        sentences: one for each view, one for each kind of `BESIDE`, and that this is one seed; none without
        sparse networks.
    """
    views = {words: [run for run in runs if run.view == view] for view, words in VIEWS.items()}
    views = {words: view for words, view in views.items() if _of(view, "sparse") and _of(view, *DENSE)}
    if not views:
        return []
    found = [(words, *_judge(view)) for words, view in views.items()]
    sentences: list[str] = []
    for words, who, figures, _ in found:
        start = f"{words.capitalize()} too" if who == found[0][1] else f"{words.capitalize()} {who}"
        sentences.append(f"{start if sentences else f'In this comparison {who} {words}'}: {figures}.")
    first, winner = next(iter(views.values())), found[0][3]
    if winner and all(who == found[0][1] for _, who, _, _ in found):
        sentences[-1] += "" if any(better(run, winner) for run in _of(first, *BESIDE)) else " Take it."
    sentences += [_beside(kind, words, first) for kind, words in BESIDE.items() if _of(first, kind)]
    return [*sentences, "This is one seed: another one may decide otherwise."]


def better(run: Run, other: Run) -> bool:
    """Whether one network does better than another: by accuracy in no more time, or by time alone."""
    if _more_accurate(run, other):
        return run.total_seconds <= NO_MORE_TIME * other.total_seconds
    return not _more_accurate(other, run) and run.total_seconds <= FASTER * other.total_seconds


def _more_accurate(run: Run, other: Run) -> bool:
    # Less what is lost with decimals.
    return run.result.accuracy - other.result.accuracy > MORE_ACCURATE - 1e-9


def _judge(runs: Sequence[Run]) -> tuple[str, str, Run | None]:
    """Who did better, the figures, and which network it was, if any."""
    sparse, dense = _of(runs, "sparse"), _of(runs, *DENSE)
    best_sparse, best_dense = _best(sparse), _best(dense)
    if wins := [run for run in dense if better(run, best_sparse) and not any(better(s, run) for s in sparse)]:
        winner = _best(wins)
        who = "the dense network" if winner.kind == "dense" else "a narrower dense network"
        return f"{who} does better", f"{_figures(winner)}; {_figures(best_sparse, 'best sparse')}", winner
    if wins := [run for run in sparse if all(_outdoes(run, one) for one in dense)]:
        winner = _best(wins)
        figures = f"{_figures(winner)}; {_figures(best_dense, 'best dense')}"
        return "a sparse network does better", figures, winner
    return NO_DIFFERENCE, f"{_figures(best_dense)}; {_figures(best_sparse)}", None


def _outdoes(sparse: Run, dense: Run) -> bool:
    """A narrow network may be faster: the time that counts is the dense one's."""
    return better(sparse, dense) or (dense.kind == "small dense" and _more_accurate(sparse, dense))


def _beside(kind: str, words: str, runs: Sequence[Run]) -> str:
    run, sparse = _best(_of(runs, kind)), _best(_of(runs, "sparse"))
    does = "is as accurate as"
    if _more_accurate(run, sparse):
        does = "is more accurate than"
    elif _more_accurate(sparse, run):
        does = "is less accurate than"
    return f"{words} {does} the best sparse network: {_figures(run)}."


def _of(runs: Sequence[Run], *kinds: str) -> list[Run]:
    return [run for run in runs if run.kind in kinds]


def _best(runs: Sequence[Run]) -> Run:
    """The most accurate, and of equal ones the fastest."""
    return max(runs, key=lambda run: (run.result.accuracy, -run.total_seconds))


def _figures(run: Run, what: str = "") -> str:
    label = f"{what} ({run.label})" if what else run.label
    return f"{label}: {100 * run.result.accuracy:.1f} % in {run.total_seconds:.1f} s"
