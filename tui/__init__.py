"""The terminal UI. It starts each run as a separate process, watches the runs folder, and never imports torch."""
