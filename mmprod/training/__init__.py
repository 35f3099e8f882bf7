"""Training: from a configuration and data to a run folder (`run.train`)."""
