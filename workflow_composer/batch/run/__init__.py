"""Running rows: one runner, and what stands in front of it.

`runner` answers rows, whatever they are, and writes each down as it ends; `budget` says what may be spent. In front of it
stand `python` (`ModelOrchestrator.run_batch`), `files` (`generate --input`), `planned` (`execute`), `recording` (`record`).
"""
