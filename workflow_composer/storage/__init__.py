"""Files, on the ground floor: the only places that lock one, replace one, or append and read lines of JSON.

`locks` excludes others, `replacing` puts a whole file in another's place, `appending` adds lines, `lines` reads and writes
lines of JSON, `saved` reads what was saved back into dataclasses.
"""
