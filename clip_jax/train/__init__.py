"""The step, the loop around it, and the hooks that watch."""
