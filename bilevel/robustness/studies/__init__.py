"""What the applications that train classifiers share: arguments, runs and the table of results."""
