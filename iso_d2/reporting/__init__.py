"""One page about a run: its curves, results, pictures and how it was started, in a single HTML file."""

from .page import write_report

__all__ = ["write_report"]
