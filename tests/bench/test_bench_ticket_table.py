from bench.report.tables.ticket import ticket


def run(kind: str, number: int, accuracy: float, seconds: float) -> dict:
    weights = 1000 if number == 0 else 800
    return {
        "kind": kind,
        "round": number,
        "weights": weights,
        "sparsity": 1 - weights / 1000,
        "layers": [],
        "result": {"accuracy": accuracy, "step_seconds": seconds},
    }


def search(seed: int, ahead: float) -> dict:
    return {
        "data": {"name": "digits", "train": 1437, "test": 360},
        "model": {"name": "mlp"},
        "settings": {
            **{"epochs": 2, "batch_size": 60, "optimizer": "Adam", "lr": 0.001, "rewind": 0, "seed": seed}
        },
        "machine": {
            **{"cpu": "a cpu", "threads": 2, "isa": "avx2", "torch": "t", "sparseprune": "s", "date": "a day"}
        },
        "runs": [
            run("ticket", 0, 0.9 + ahead, 0.004),
            run("ticket", 1, 0.92 + ahead, 0.002),
            run("shuffled", 1, 0.8 + ahead, 0.002),
        ],
    }


def test_ticket_has_a_line_for_each_round_and_what_it_depends_on() -> None:
    head, _, *lines, _, facts = ticket([search(0, 0.0), search(1, 0.02)]).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *lines)]
    assert rows == [
        [
            *("round", "sparsity", "weights", "ticket, accuracy %", "other weights, accuracy %"),
            *("shuffled mask, accuracy %", "ms/step", "over dense"),
        ],
        ["0", "0.0 %", "1,000", "91.00 ± 1.41", "", "", "4.00", "1.00×"],
        ["1", "20.0 %", "800", "93.00 ± 1.41", "", "81.00 ± 1.41", "2.00", "2.00×"],
    ]
    assert facts == (
        "mlp on digits: 1,437 training and 360 test samples, 2 epochs, batch 60, Adam, lr 0.001, rewound to "
        "step 0, seeds 0, 1. After ± stands one standard deviation over the seeds. a cpu, 2 threads, avx2, "
        "torch t, sparseprune s, a day."
    )
