"""The benchmark suite: mamllit's meta-training step and whole runs beside those of other libraries."""
