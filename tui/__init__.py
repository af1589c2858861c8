"""The terminal UI: it launches runs as processes of their own, watches run folders, and never loads torch."""
