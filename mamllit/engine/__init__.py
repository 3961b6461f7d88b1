"""From a method for one episode to the meta-gradient of a batch, and to an evaluation."""
