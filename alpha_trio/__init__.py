"""An IP tunnel over UDP whose packets every hop on the way can check."""

__version__ = "0.1.0"
