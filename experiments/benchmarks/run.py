"""Time mamllit beside its peers, one command: `python experiments/benchmarks/run.py --help`; see README.md."""

from suite.cli import main

if __name__ == "__main__":
    main()
