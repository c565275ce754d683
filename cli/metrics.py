"""The status document as Prometheus text: what the daemon's listener says, too."""

from alpha_trio.metrics import metrics_text

__all__ = ["metrics_text"]
