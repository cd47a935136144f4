"""Published checkpoints: read, converted in both directions, and written back."""
