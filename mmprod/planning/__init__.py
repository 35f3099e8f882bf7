"""How large a job is, where it fits and what it takes, from its configuration alone."""
