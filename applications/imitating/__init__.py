"""Parts of gail.py."""
