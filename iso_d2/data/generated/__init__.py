"""Drawn data sets, made on first use, that need no download."""
