"""File operations: the only modules that lock or replace files, or append and read lines of JSON.

`locks` locks files, `replacing` replaces a file atomically, `appending` appends lines, `lines` reads and writes lines of
JSON, `saved` converts dataclasses to JSON and back.
"""
