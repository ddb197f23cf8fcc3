"""Steps at work: of a row, of the items of a list, and over all rows.

``row.run_row(workflow, row, world)`` runs the steps of one row and returns its `RowOutcome`; ``over_rows.run_over_rows(step,
rows, world)`` runs a step of the run and returns its `StepResult`. Failures are part of what they return.
"""
