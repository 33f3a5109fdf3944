"""The report's experiments, run again: what they are, running them, their records, tables and figures."""
