"""What ``applications/learned_follower.py`` is made of: updates, games, training, play, figure."""
