"""``python -m sparseprune``: the command line."""

from sparseprune.cli import main

if __name__ == "__main__":
    main()
