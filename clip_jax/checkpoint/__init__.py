"""Run folders: what is saved, when it is safe to go on, and where to start."""
