"""The command line: parses, calls, prints. Nothing else is decided here."""
