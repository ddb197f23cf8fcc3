"""Running rows: one runner and its four front ends.

`runner` answers rows of any kind, writes each to a journal as it ends, and keeps the budget. Its front ends are `run_batch`
(`ModelOrchestrator.run_batch`), `file_run` (`generate --input`), `planned_run` (`execute`) and `record_run` (`record`).
"""
