"""`python -m mamllit.cli`, where the `mamllit` command is not on the path."""

from mamllit.cli.entry import main

if __name__ == "__main__":
    main()
