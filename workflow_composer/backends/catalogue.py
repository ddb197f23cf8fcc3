"""The built-in catalogue of cloud models, for what calls them. Profiles read it too, so it stands in `config.catalogue`."""

from __future__ import annotations

from workflow_composer.config.catalogue import CATALOGUE, CloudModel, clouds, find

__all__ = ["CATALOGUE", "CloudModel", "clouds", "find"]
