"""What an adversary may do to an image, and what it raises."""
