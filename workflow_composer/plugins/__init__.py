"""The plugin host, the hooks that plugins implement, and the built-in plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_composer.plugins.hookspecs import hookimpl
    from workflow_composer.plugins.host import PluginHost, plugin_host

__all__ = ["PluginHost", "hookimpl", "plugin_host"]

_HOMES = {"PluginHost": "host", "hookimpl": "hookspecs", "plugin_host": "host"}


def __getattr__(name: str) -> Any:
    from workflow_composer.support.lazy_names import lift

    return lift(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
