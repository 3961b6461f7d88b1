"""What `experiments/reproduce.py` is made of: the cells, the work on them, and the table."""
