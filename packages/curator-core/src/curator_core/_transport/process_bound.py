# SPDX-License-Identifier: Apache-2.0
"""Objects that belong to a process and have a name: they are not sent; the other process finds or makes its own.

These are loggers, tracers, meters, locks, and cached functions that a script keeps in globals. For a global of a
module, the other process uses the global of its own copy of that module. For a global of the script, which no other
process imports, each process makes one object: all stages of a worker that use one lock of the script share one lock.

The libraries of these objects are not imported here: their classes are recognized by name.
"""

from __future__ import annotations

import importlib
import operator
import os
import sys
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

__all__ = ["THIS_PROCESS", "imported", "is_of_script", "named_globals", "reducer_for"]

THIS_PROCESS = os.urandom(8).hex()
"""Identifies this process, so that it recognizes its own objects when they come back."""

_SCRIPTS = ("__main__", "__mp_main__")
_DATA = (str, bytes, int, float, complex, type(None), tuple, list, dict, set, frozenset)
_CODE = (type, FunctionType, BuiltinFunctionType, ModuleType)
_NOTHING = (*_DATA, *_CODE)  # never sent as a name

Reduced: TypeAlias = tuple[Any, ...]
_Kind: TypeAlias = Callable[[Any, Callable[[Any], bool]], Reduced | None]


class _Name(NamedTuple):
    """The location of an object.

    Attributes:
        process: The process that runs the script; empty for an object of a module that all processes can import.
        module: The module.
        name: The global, or ``Class.attribute``.
    """

    process: str
    module: str
    name: str


_made: dict[_Name, Any] = {}  # the objects that this process made in place of those of other processes
_places: WeakKeyDictionary[Any, _Name] = WeakKeyDictionary()
_making = threading.RLock()


@lru_cache(maxsize=512)
def reducer_for(cls: type, pickles: Callable[[Any], bool]) -> Callable[[Any], Reduced] | None:
    """Return how the instances of a class are pickled; None if they are not process-bound or not known here.

    Args:
        cls: The class.
        pickles: Tells whether a value pickles.
    """
    if cls in _LOCKS:
        return _reduce_lock
    for base in cls.__mro__:
        kind = _KINDS.get(f"{base.__module__}.{base.__qualname__}")
        if kind is not None:
            return partial(_reduce, kind, pickles)
    return None


def _reduce(kind: _Kind, pickles: Callable[[Any], bool], thing: Any) -> Reduced:
    reduced: Reduced = kind(thing, pickles) or thing.__reduce_ex__(2)
    return reduced


# --- names ------------------------------------------------------------------------------------------------


def is_of_script(module: str) -> bool:
    """Whether no other process imports a module: it is the running script, or registered to be pickled by value."""
    return _is_of_script(module, _by_value())


def named_globals() -> dict[int, tuple[str, str]]:
    """Return module and name of the objects, but for code and data, of modules that others can import, by `id`."""
    found: dict[int, tuple[str, str]] = {}
    by_value = _by_value()
    module: Any  # `sys.modules` may contain anything
    for name, module in [*sys.modules.items()]:
        if isinstance(module, ModuleType) and not _is_of_script(name, by_value):
            for attribute, thing in [*vars(module).items()]:
                if not isinstance(thing, _NOTHING):
                    found.setdefault(id(thing), (name, attribute))
    return found


def _place_of(thing: Any) -> _Name | None:
    """Return the location of a global; None if it is not one. A module that others can import beats a script."""
    place = _places.get(thing)
    if place is not None and _found(place) is thing:
        return place
    of_script, by_value = None, _by_value()
    for name, module in [*sys.modules.items()]:
        in_script = _is_of_script(name, by_value)
        attribute = _attribute(module, thing, in_classes=in_script)
        if attribute:
            place = _Name(THIS_PROCESS if in_script else "", name, attribute)
            if not in_script:
                break
            of_script = of_script or place
    else:
        place = of_script
    if place is not None:
        _places[thing] = place
    return place


def _by_value() -> set[str]:
    """Return the modules that users have registered with cloudpickle to be pickled by value."""
    copies = [module for name, module in [*sys.modules.items()] if name.rpartition(".")[2] == "cloudpickle"]
    told = [getattr(each, "list_registry_pickle_by_value", None) for each in copies]  # engines bring their own copies
    return set[str]().union(*(tell() for tell in told if tell is not None))


def _is_of_script(name: str, by_value: set[str]) -> bool:
    if name in _SCRIPTS or getattr(sys.modules.get(name), "__spec__", None) is None:
        return True
    return bool(by_value) and any(name == each or name.startswith(f"{each}.") for each in by_value)


def _attribute(module: Any, thing: Any, *, in_classes: bool) -> str | None:
    """Return the name of a module's global, or of an attribute of one of its classes."""
    if not isinstance(module, ModuleType):
        return None
    for name, value in [*vars(module).items()]:
        if value is thing:
            return name
        if in_classes and isinstance(value, type) and value.__module__ == module.__name__:
            for attribute, held in [*vars(value).items()]:
                if held is thing:
                    return f"{name}.{attribute}"
    return None


def _found(place: _Name) -> Any:
    """Return the object at a location in this process; None if there is none."""
    if place.process in ("", THIS_PROCESS):
        try:
            return operator.attrgetter(place.name)(sys.modules[place.module])
        except (KeyError, AttributeError):
            return None
    return _made.get(place)


def imported(module: str, name: str, kind: str) -> Any:
    """Return a global of a module, in the process that this is called in.

    Args:
        module: The module.
        name: The global.
        kind: The name of its class in the process that pickled it.

    Raises:
        TypeError: Its class in this process is a different one.
    """
    found = operator.attrgetter(name)(importlib.import_module(module))
    if type(found).__qualname__ != kind:
        raise TypeError(f"{module}.{name} is a {type(found).__qualname__} in this process, not a {kind}")
    return found


def _of_script(place: _Name, make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Return an object of a script: the original in its own process, otherwise the one made in its place."""
    with _making:
        found = _found(place)
        if found is None:
            found = _made[place] = make(*args)
            _places[found] = place
    return found


# --- locks ------------------------------------------------------------------------------------------------

_LOCKS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    type(threading.Lock()): lambda lock: (),
    type(threading.RLock()): lambda lock: (),
    threading.Condition: lambda condition: (_named_or_none(condition._lock),),
    threading.Semaphore: lambda semaphore: (semaphore._value,),
    threading.BoundedSemaphore: lambda semaphore: (semaphore._initial_value,),
}
_MAKERS = {type(threading.Lock()): threading.Lock, type(threading.RLock()): threading.RLock}  # types cannot be called


def _reduce_lock(lock: Any) -> Reduced:
    """Reduce a lock to its name: a lock without one, in a task or a stage, would guard nothing in another process."""
    cls, place = type(lock), _place_of(lock)
    if place is not None and not place.process:
        return imported, (place.module, place.name, cls.__qualname__)
    if place is not None:
        return _of_script, (place, _MAKERS.get(cls, cls), _LOCKS[cls](lock))
    if cls in _MAKERS:
        raise TypeError(f"cannot pickle '{cls.__module__}.{cls.__qualname__}' object")
    reduced: Reduced = lock.__reduce_ex__(2)
    return reduced


def _named_or_none(lock: Any) -> Any:
    return lock if _place_of(lock) else None


# --- loggers, tracers, meters -----------------------------------------------------------------------------


def _logurus_core(core: Any, pickles: Callable[[Any], bool]) -> Reduced | None:
    """Reduce the core that all of loguru's loggers share, with the sinks: each process has one."""
    return (_loguru, ()) if core is _loguru() else None


def _loguru() -> Any:
    return importlib.import_module("loguru").logger._core


def _structlogs_proxy(logger: Any, pickles: Callable[[Any], bool]) -> Reduced:
    # Without the logger that the proxy may have made from this process's configuration.
    state = {name: value for name, value in vars(logger).items() if name != "bind"}
    return object.__new__, (type(logger),), state


def _structlogs_bound_logger(logger: Any, pickles: Callable[[Any], bool]) -> Reduced | None:
    if pickles(vars(logger)):  # with its processors, so that it writes as it does here
        return None
    wrapped = logger._logger
    names = (wrapped.name,) if isinstance(getattr(wrapped, "name", None), str) else ()
    return _structlog, (names, dict(logger._context))


def _structlog(names: tuple[str, ...], context: dict[str, Any]) -> Any:
    return importlib.import_module("structlog").get_logger(*names, **context)


def _tracer(tracer: Any, pickles: Callable[[Any], bool]) -> Reduced:
    scope = getattr(tracer, "_instrumentation_scope", None)
    if scope is None:  # a tracer of the API, made before a provider was set
        name, version = tracer._instrumenting_module_name, tracer._instrumenting_library_version
        return _api, ("trace", "get_tracer", name, version, *_scope_options(tracer, "_"))
    return _api, ("trace", "get_tracer", scope.name, scope.version, *_scope_options(scope))


def _meter(meter: Any, pickles: Callable[[Any], bool]) -> Reduced:
    scope = getattr(meter, "_instrumentation_scope", meter)
    return _api, ("metrics", "get_meter", meter.name, meter.version or "", *_scope_options(scope))


def _scope_options(scope: Any, prefix: str = "") -> tuple[Any, Any]:
    attributes = getattr(scope, f"{prefix}attributes", None)
    return getattr(scope, f"{prefix}schema_url", None), dict(attributes) if attributes else None


def _api(signal: str, get: str, name: str, version: str | None, schema_url: str | None, attributes: Any) -> Any:
    """Return a tracer or a meter of OpenTelemetry's API, from the provider of this process."""
    options = {"schema_url": schema_url, "attributes": attributes}
    module = importlib.import_module(f"opentelemetry.{signal}")
    return getattr(module, get)(name, version, **{key: value for key, value in options.items() if value is not None})


def _instrument(instrument: Any, pickles: Callable[[Any], bool]) -> Reduced | None:
    """Reduce an instrument that a meter has made: in another process, the meter of that name makes its own."""
    real = getattr(instrument, "_real_instrument", None) or instrument
    create = next((_CREATE[base.__name__] for base in type(real).__mro__ if base.__name__ in _CREATE), None)
    scope = getattr(real, "instrumentation_scope", None)
    if scope is None or create is None:
        return None  # without a provider it does nothing, and it pickles
    meter = ("metrics", "get_meter", scope.name, scope.version or "", *_scope_options(scope))
    return _instrument_of, (meter, create, real.name, real.unit, real.description)


def _instrument_of(meter: tuple[Any, ...], create: str, name: str, unit: str, description: str) -> Any:
    return getattr(_api(*meter), create)(name, unit, description)


_CREATE = {
    "Counter": "create_counter",
    "UpDownCounter": "create_up_down_counter",
    "Histogram": "create_histogram",
    "Gauge": "create_gauge",
}

# --- functions with a cache -------------------------------------------------------------------------------


def _cached(function: Any, pickles: Callable[[Any], bool]) -> Reduced | None:
    """Reduce a script's cached function, with an empty cache: `functools` pickles all of them by name."""
    place = _place_of(function)
    if place is not None and not place.process:
        return None
    made_of = (function.__wrapped__, function.cache_parameters())
    return (_cached_anew, made_of) if place is None else (_of_script, (place, _cached_anew, made_of))


def _cached_anew(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return lru_cache(**parameters)(function)


_KINDS: dict[str, _Kind] = {
    "functools._lru_cache_wrapper": _cached,
    "loguru._logger.Core": _logurus_core,
    "structlog._config.BoundLoggerLazyProxy": _structlogs_proxy,
    "structlog._base.BoundLoggerBase": _structlogs_bound_logger,
    "opentelemetry.trace.ProxyTracer": _tracer,
    "opentelemetry.sdk.trace.Tracer": _tracer,
    "opentelemetry.metrics.Meter": _meter,
    "opentelemetry.metrics.Synchronous": _instrument,
}
