"""What is measured of a training step and of a training run, on any device, with torch alone."""
