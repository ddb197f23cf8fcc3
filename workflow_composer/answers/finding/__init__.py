"""Finding an answer in a text: marks and phrases around it, what stands unmarked, and what is written around an answer."""
