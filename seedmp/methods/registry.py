"""The methods by name, and a method from the settings that a user wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from seedmp.checks import plain, plain_parts, shown
from seedmp.errors import ConfigError
from seedmp.methods.base import Method
from seedmp.registry import Registry

METHODS: Registry[type[Method]] = Registry(
    "method",
    {
        "ar": "seedmp.methods.ar:Autoregressive",
        "sd": "seedmp.methods.static:SpeculativeSampling",
        "mcsd": "seedmp.methods.static:MultiCandidate",
        "specinfer": "seedmp.methods.static:SpecInfer",
        "sequoia": "seedmp.methods.static:Sequoia",
        "opt-tree": "seedmp.methods.opt_tree:OptTree",
        "ngram": "seedmp.methods.ngram:Ngram",
        "eagle": "seedmp.methods.eagle:Eagle",
        "coupled": "seedmp.methods.coupled:Coupled",
    },
)


def make_method(method: object, settings: Mapping[str, Any]) -> Method:
    """The method of a name with settings, or a ready one.

    Args:
        method: a name, or a Method.
        settings: by name; None is "not given". A ``k_config`` that the method has no use for is ignored, so that
            one set of settings can be tried with several methods; any other is refused.

    Raises:
        ConfigError: no such method, a setting that it does not use, or a wrong value.
    """
    given = {name: plain_parts(value) for name, value in settings.items() if value is not None}
    cls = method_class(method)
    known = names_of(cls)
    if "k_config" not in known:
        given.pop("k_config", None)
    for name in given:
        if name not in known:
            users = [other for other in METHODS.names() if name in names_of(METHODS.load(other))]
            only = f"only by {', '.join(users)}" if users else f"it has {', '.join(sorted(known)) or 'no settings'}"
            raise ConfigError(f"{name} is not used by method={cls.name}: {only}")
    if not isinstance(method, Method):
        return cls(**given)
    own = {f.name: plain(getattr(method, f.name)) for f in fields(method) if f.init}  # workers get it as JSON
    return replace(method, **{**own, **given})


def names_of(cls: type[Method]) -> set[str]:
    """Names of a method's settings."""
    return {f.name for f in fields(cls)}


def name_of(method: Method) -> str:
    """What ``METHODS.load`` finds the method's class by: its name, or ``module:attribute``.

    Raises:
        ConfigError: its class can be found by no name.
    """
    cls = type(method)
    built_in = METHODS.table.get(cls.name)
    where = f"{cls.__module__}:{cls.__qualname__}"
    if built_in == where:
        return cls.name
    if METHODS.load(where) is not cls:
        raise ConfigError(f"method {cls.__qualname__}: {where} is another class")
    return where


def method_to_plain(method: Method) -> dict[str, Any]:
    """A JSON-able dictionary that ``method_from_plain`` reads back."""
    return {"name": name_of(method), "settings": method.settings()}


def method_from_plain(plain: Mapping[str, Any]) -> Method:
    """The inverse of ``method_to_plain``."""
    return make_method(plain["name"], plain["settings"])


def method_class(method: object) -> type[Method]:
    """The class of a method or of a method's name.

    Raises:
        ConfigError: no such method.
    """
    cls = type(method) if isinstance(method, Method) else METHODS.load(method)
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise ConfigError(f"method={shown(method)}: {cls!r} is not a subclass of seedmp.methods.base.Method")
    return cls
