"""The `nas` command: one short verb per pipeline function."""

from nas.cli.app import main

__all__ = ["main"]
