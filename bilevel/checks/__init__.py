"""What a game checks before it moves: its parts, its losses, its first answer, its processes."""
