"""The small DenseNet of the tests of models."""

from tests.models.conftest import model

__all__ = ["model"]
