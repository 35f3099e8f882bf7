"""The command line: parses, calls the stage functions, and is the only code that prints."""
