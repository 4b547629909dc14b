"""The tables of the documentation, made from the committed results: a function each."""
