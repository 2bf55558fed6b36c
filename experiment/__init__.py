"""Who runs a search, and what is written."""
