"""How much accuracy is left under attack, and whether the figure can be trusted."""
