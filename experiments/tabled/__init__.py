"""What experiments/tables.py writes: the data behind the tables, and a function for each table."""
