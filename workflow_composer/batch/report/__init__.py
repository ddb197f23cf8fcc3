"""The report on runs: statistics, comparison, figures."""
