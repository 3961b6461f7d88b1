"""What everything else speaks: episodes, the inner loop's step, metrics, random numbers that belong to an episode."""
