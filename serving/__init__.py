"""From weights to answers: export, check, serve, ask."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`from serving import export_model`, without TensorFlow for those who only ask a server."""
    if name in ("export_model", "export_run"):
        from serving import export

        return getattr(export, name)
    raise AttributeError(f"module 'serving' has no attribute {name!r}")
