"""Run an experiment: `python experiments/run.py fit -c experiments/maml/sine_10shot.yaml` is `mamllit fit -c ...`."""

from mamllit.cli import main

if __name__ == "__main__":
    main()
