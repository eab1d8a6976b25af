"""Sweeps without an account: the files that W&B's sweeps have, searched by Optuna."""
