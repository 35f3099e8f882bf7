"""One self-contained HTML page about a run and its bundle (`page`)."""
