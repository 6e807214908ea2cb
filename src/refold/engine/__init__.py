"""The engine: what tries the rules, decides, and computes the weights of what it keeps.

`simplify` runs them on shadows without storage; `replay` repeats on numbers what was decided,
`slices` and `row_slices` a part at a time where the numbers are many.
"""
