"""The program `holdfast`: what people and scripts do with instances, and the processes that do the work.

Every ending has an exit code (`exits.py`) and every error one clear line. It knows no more than the queries answer and
publishes no more than the client does.
"""

from __future__ import annotations

from engine.cli.app import main

__all__ = ["main"]
