from tests import pypi_torchvision  # noqa: F401, before transformers imports torchvision
