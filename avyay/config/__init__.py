"""Configuration: one typed tree from flags, `AVYAY_*`, the project's and the user's avyay.yaml, and defaults."""

from avyay.config.environment import Environment
from avyay.config.load import Loaded, Origin, load_settings
from avyay.config.schema import Settings

__all__ = ["Environment", "Loaded", "Origin", "Settings", "load_settings"]
