"""A pod rehearsed without a pod: what a training step costs, before it is paid for."""
