"""What makes a model better, and measures it: data, losses, the step, the run."""
