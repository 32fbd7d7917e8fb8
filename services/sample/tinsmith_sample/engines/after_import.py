"""Adjustments of another project's modules, made as they are imported."""

import importlib.abc
import importlib.machinery
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


class AfterImport(importlib.abc.MetaPathFinder):
    """Runs one adjustment right after each named module has been executed."""

    def __init__(self, adjustments: dict[str, Callable[[Any], None]]) -> None:
        self._adjustments = adjustments

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The ordinary spec of a named module, with a loader that adjusts it; None for all others."""
        adjust = self._adjustments.get(fullname)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path) if adjust else None
        if spec is None or spec.loader is None or adjust is None:
            return None
        spec.loader = _AdjustingLoader(spec.loader, adjust)
        return spec


class _AdjustingLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, adjust: Callable[[Any], None]) -> None:
        self._loader = loader
        self._adjust = adjust

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._adjust(module)
