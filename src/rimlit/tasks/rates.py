"""Where an optimiser is in the schedule of its learning rate."""

from torch.optim import Optimizer


def rate_share(optimizer: Optimizer) -> float:
    """Return the learning rate of the first parameters as a share of the highest of its schedule.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
        >>> optimizer.step(), schedule.step()
        (None, None)
        >>> rate_share(optimizer)
        0.5
    """
    group = optimizer.param_groups[0]
    rate = float(group.get("lr", 1))
    # a schedule leaves its highest rate; ReduceLROnPlateau leaves none
    highest = float(group.get("max_lr", group.get("initial_lr", optimizer.defaults.get("lr", rate))))
    return min(rate / highest, 1.0) if highest > 0 else 1.0
