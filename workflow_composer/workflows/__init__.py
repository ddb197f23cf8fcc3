"""Workflows: several steps over the rows of a table, as one thing.

``definition/`` reads a file and checks all of it before anything is called; ``running/`` runs the steps of a row, of items
and over all rows; ``keeping/`` keeps every answer, so that a later run repeats nothing; ``programs/`` runs people's programs
and functions within limits.
"""
