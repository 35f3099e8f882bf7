"""Our parts beside those of well-known libraries, timed in turn in one process: `make bench`."""
