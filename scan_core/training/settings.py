"""Settings of an optimizer: the groups ``optimizer``."""

from typing import Literal

from scan_core.settings import CountOrZero, Momentum, NonNegative, Positive, Settings


class Optimizer(Settings):
    """SGD, LARS and Adam have L2 weight decay, Muon decoupled weight decay. The rate follows ``schedule``."""

    name: Literal["sgd", "lars", "adam", "muon"]
    lr: Positive
    weight_decay: NonNegative
    momentum: Momentum  # Adam's first beta, Muon's momentum
    schedule: Literal["constant", "cosine"]
    warmup_epochs: CountOrZero  # the rate rises linearly from 0
    final_lr: NonNegative  # the rate at the end of the cosine
