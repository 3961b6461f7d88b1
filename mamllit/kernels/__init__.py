"""CPU operators closed under differentiation; opt-in, each equal to its plain form by a test."""
