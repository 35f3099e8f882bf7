"""What a job is: the schema of its configuration, and reading and writing it as TOML."""
