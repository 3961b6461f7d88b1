"""What lets a run survive: atomic writes, checkpoints, a clean stop, loggers that go on, identity and provenance."""
