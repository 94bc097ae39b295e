"""Studies over experiments. Knows ``components`` and Optuna, nothing of the command line."""
