"""Environments of the screen that gymnasium does not register."""

import gymnasium

DECKS = {"RepeatPreviousEight-v0": 1, "RepeatPreviousEightLong-v0": 4}


def register() -> None:
    """Make POPGym's RepeatPrevious known with eight cards to remember, over 52 steps and over 208."""
    for name, decks in DECKS.items():
        if name not in gymnasium.registry:
            options = {"num_decks": decks, "k": 8}
            gymnasium.register(name, entry_point="popgym.envs.repeat_previous:RepeatPrevious", kwargs=options)
