"""fl: open-model fine-tuning that runs the same on NVIDIA, AMD, Ascend, Intel and CPU machines."""

__version__ = "0.1.0"
