"""Texts that no reader should trip over."""

from __future__ import annotations

from hypothesis import strategies as st

MARKS = [
    *("####", "#### 1", r"\boxed{", r"\boxed", r"\fbox{", "{", "}", r"\{", r"\}", "\\", '"', '{"answer": ', '"answer"'),
    *("the answer is ", "Answer:", "A: ", "\n", " ", ":", "$", r"\(", r"\)", r"\frac{", r"\frac12", r"\text{", r"\left("),
    *(r"\,", "1", "1,000", "-", ".5", "/", "%", "e9", "^", "x", "pi", " km", "million", "null", "[", "]", "**"),
    *("\x00", "\ud800", "\u00bd"),
]
anything = st.text(st.characters(exclude_categories=())) | st.lists(st.sampled_from(MARKS), max_size=30).map("".join)
"""Any text, lone surrogates and null bytes too; often made of the marks that readers look for."""

PIECES = [
    *(r"\boxed{", r"\boxed{1}", r"\boxed", "{", "}", "{}", '{"a":', '{"answer":', '{"answer":1}', '"\\"', '\\"', '{"\\"'),
    *("####", "#### 1\n", "answer is ", "answer:\n", "A: ", r"\text{", r"\text{a}", r"\frac{1}", r"\frac{1}{2}", "1,"),
    *("1,000,", "1", "1.", "1/", " ", "\n", "-", "(", "[", "\\", r"\ ", "$", "a", "a b ", "x ?. ", "**", r"^\circ"),
    *("\x00", "\ud800", "e1"),
]
"""What a megabyte of could take a careless reader hours."""
