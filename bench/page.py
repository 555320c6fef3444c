from pathlib import Path


def write(results: Path, page: Path) -> None:
    pass
