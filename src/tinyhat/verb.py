"""Lets a sub-package be called: ``tinyhat.train(...)`` is the verb, ``tinyhat.train.loop`` its folder."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def make_callable(module: str, function: str, home: str = "tinyhat.verbs") -> None:
    """Make the imported `module` callable; a call goes to `function` of the module `home`, imported then.

    Folder and verb are one word here, and Python gives a package one attribute per name: the folder has to be both.
    """

    class Verb(ModuleType):
        def __call__(self, *arguments: Any, **settings: Any) -> Any:
            return getattr(import_module(home), function)(*arguments, **settings)

    sys.modules[module].__class__ = Verb
