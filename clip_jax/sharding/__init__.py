"""The mesh of a run, and which part of every array each device holds."""
