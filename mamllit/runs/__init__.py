"""A run that survives: atomic writes, checkpoints, a clean stop, loggers that go on, identity and provenance."""
