"""What a losskit config selects: losses, models, data, schedules and the rest, as plain PyTorch objects.

Nothing here knows of Hydra, MLflow, Optuna or the command line, and importing this package imports no torch:
``from components.losses import CrossEntropyLoss`` works in anybody's notebook.
"""
