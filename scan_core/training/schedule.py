"""The learning rate as a pure function of the step."""

import math

from scan_core.training.settings import Optimizer


def learning_rate(settings: Optimizer, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Rate of step ``step`` (from 0): linear warm-up, then constant, or a half cosine to ``final_lr``."""
    warmup, total = settings.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.lr
    progress = (step - warmup) / max(total - warmup, 1)
    return settings.final_lr + (settings.lr - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
