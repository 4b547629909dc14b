"""The names of the checklist's items."""

ONE_STEP, BLACK_BOX, RANDOM = (
    "one step breaks less than many",
    "black-box attacks add nothing",
    "random sampling adds nothing",
)
UNBOUNDED, LARGER = "unbounded attacks break everything", "a larger ε breaks more"
CONVERGED, LONGER = "PGM has converged", "longer attacks add nothing"
CROSS_ENTROPY = "cross entropy can be followed"
RADIUS, COMPLETE = "ε is large enough", "every attack gave a figure"
ENOUGH = "enough images"
