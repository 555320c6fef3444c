"""``python -m sparseprune``: the command line."""

from sparseprune.experiments.cli import main

if __name__ == "__main__":
    main()
