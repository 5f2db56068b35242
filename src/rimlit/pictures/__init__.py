"""Pictures of a run: which mechanisms were active, rolled out frames, forecasts, an episode."""

import rimlit._train  # noqa: F401
from rimlit.pictures.activity import MechanismActivity
from rimlit.pictures.episodes import EpisodePictures
from rimlit.pictures.forecasts import ForecastPictures
from rimlit.pictures.rollouts import RolloutPictures

__all__ = ["EpisodePictures", "ForecastPictures", "MechanismActivity", "RolloutPictures"]
