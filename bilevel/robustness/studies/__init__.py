"""Several methods side by side: what the applications that train classifiers share."""
