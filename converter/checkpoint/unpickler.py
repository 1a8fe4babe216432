"""An unpickler that makes only allowed objects."""

import collections
import functools
import pickle
import types
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, ClassVar

import numpy as np
import torch

from converter.checkpoint.pickle_allowlist import (
    COMPILING,
    HOOKS,
    TENSOR_REBUILDERS,
    WRAPPED_HOOK,
    Named,
    Refused,
    attribute,
    check_array,
    is_library_module,
    tensor_with_attributes,
)
from converter.checkpoint.pickle_globals import MOST_ODD_KEYS, is_plain_key, python_3_name, resolve
from converter.checkpoint.placeholders import Opaque
from converter.checkpoint.trust import Trust

MAPPINGS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)

COLLECTORS = (*MAPPINGS, set, frozenset)  # they hash what they are given

TIME_UNITS = (b"generic", b"Y", b"M", b"W", b"D", b"h", b"m", b"s", b"ms", b"us", b"ns", b"ps", b"fs", b"as")

# The one of pickle's two unpicklers whose instructions can be replaced.
PurePython: Any = pickle._Unpickler


class NameRefused(Refused):
    """The pickle uses a name that is not allowed; the text is the name."""


class TrustedCodeError(Exception):
    """Code that the user trusts raised; the cause says what."""


class RestrictedUnpickler(PurePython):
    """An unpickler that makes only the objects that `resolve` allows.

    Modules of torch, torchvision and timm are made by `object.__new__` and given their state by torch's own
    `__setstate__`; they are never called. Values are set and added only in plain containers, or in objects of trusted
    classes. A call may only reach a function that is allowed to be called.

    Args:
        size: of the file in bytes, which no tensor may exceed.
        opaque: names that are not allowed give an `Opaque` instead of an error.
        left_aside: collects the names of classes whose objects an `Opaque` replaces.
    """

    dispatch: ClassVar[dict[int, Callable]] = dict(PurePython.dispatch)

    def __init__(
        self,
        file: IO[bytes],
        *,
        trust: Trust,
        size: int,
        opaque: bool = False,
        left_aside: dict[str, None] | None = None,
        **options: Any,
    ):
        super().__init__(file, **options)
        self.left_aside = {} if left_aside is None else left_aside
        self.opaque = opaque
        self.trust = trust
        self.size = size
        self.named: dict[int, Named] = {}
        self._odd_keys = 0
        self._given_state: list[Any] = []  # objects of no trusted class

    def load(self) -> Any:
        content = super().load()
        for one in self._given_state:  # again: the file can put more into a dictionary after it was given as a state
            self._check_attributes(type(one), one.__dict__)
        return content

    def _check_attributes(self, kind: type, attributes: dict) -> None:
        """Refuse functions where a library would call them as a method or a hook of the object's.

        Raises:
            Refused: a callable attribute has the name of something that the class defines, or is a hook that PyTorch
                itself does not register; and nobody trusts it.
        """
        for name, value in attributes.items():
            if not isinstance(name, str):
                raise Refused(f"an attribute of {_describe(kind)} without a name")
            special = name.startswith("__") and name.endswith("__")
            if callable(value) and (special or hasattr(kind, name)) and not self._is_trusted(value):
                raise Refused(f"{_describe(value)} in the place of {kind.__name__}.{name}")
            if name.startswith("_") and name.endswith("_hooks") and issubclass(kind, torch.nn.Module):
                if type(value) not in (dict, collections.OrderedDict):
                    raise Refused(f"{_describe(type(value))} as {kind.__name__}.{name}")
                self._check_hooks(kind, dict.values(value))
            if kind is WRAPPED_HOOK and name == "hook":
                self._check_hooks(kind, [value])

    def _check_hooks(self, kind: type, hooks: Iterable[Any]) -> None:
        for hook in hooks:
            if callable(hook) and type(hook) not in HOOKS and not self._is_trusted(hook):
                raise Refused(f"{_describe(hook)} as a hook of {_describe(kind)}")

    def _is_trusted(self, value: Any) -> bool:
        if isinstance(value, functools.partial):
            return self._is_trusted(value.func)
        if isinstance(value, types.MethodType):
            return self._is_trusted(value.__func__)
        return self.trust.owns(value) or self.trust.owns(type(value))

    def _tensor_arguments(self, rebuild: Any, arguments: tuple) -> tuple:
        """Without hooks, which torch.save never writes; attributes are checked, since they are set at once."""
        if rebuild is tensor_with_attributes:
            inner, kind, given, state = arguments
            self._check_tensor_state(state)
            return inner, kind, self._tensor_arguments(inner, given), state
        if rebuild not in TENSOR_REBUILDERS:
            return arguments
        if rebuild is torch._utils._rebuild_parameter_with_state:
            self._check_tensor_state(arguments[3])
        return tuple(
            collections.OrderedDict() if type(argument) is collections.OrderedDict else argument
            for argument in arguments
        )

    def _check_tensor_state(self, state: Any) -> None:
        for attributes in state if type(state) is tuple else (state,):
            if attributes is not None and type(attributes) is not dict:
                raise Refused(f"{_describe(type(attributes))} as the attributes of a tensor")
            self._check_attributes(torch.Tensor, attributes or {})

    def find_class(self, module: str, name: str) -> Any:
        module, name = python_3_name(module, name, self.proto)
        if (module, name) == ("builtins", "getattr"):
            named: Named | None = Named(self._attribute, called=True)
        else:
            named = resolve(module, name, self.trust)
        if named is None and self.opaque:
            named = Named(Opaque, called=True, built=True)
        if named is None:
            raise NameRefused(f"{module}.{name}")
        if named.value is Opaque and not f"{module}.{name}".startswith(COMPILING):
            self.left_aside[f"{module}.{name}"] = None
        self.named[id(named.value)] = named
        return named.value

    def _attribute(self, owner: Any, name: str) -> Any:
        if type(owner) is Opaque:
            return Opaque()
        if owner is Opaque:  # a member of an enumeration, or a method that makes an object
            return Opaque
        if isinstance(owner, type) and self.trust.owns(owner):
            value = vars(owner).get(name)
            if self.trust.owns(value):
                self.named[id(value)] = Named(value, called=True, built=True)
                return value
        if isinstance(owner, torch.nn.Module) and self.trust.owns(type(owner)) and not name.startswith("_"):
            function = getattr(type(owner), name, None)
            if isinstance(function, types.FunctionType) and self.trust.owns(function):
                return types.MethodType(function, owner)  # as in `self.forward = self.forward_fused`
        return attribute(owner, name)

    def _allowed(self, value: object) -> Named:
        named = self.named.get(id(value))
        if named is None or named.value is not value:
            raise Refused(f"a call of {_describe(value)}")
        return named

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def _call(self, function: Any, arguments: tuple) -> Any:
        if not self._allowed(function).called or type(arguments) is not tuple:
            raise Refused(f"a call of {_describe(function)}")
        if any(type(argument) is range for argument in arguments):
            raise Refused("a collection of as many numbers as it likes")
        if function in COLLECTORS:
            self._odd_keys += sum(not is_plain_key(key) for key in _keys_of(function, arguments))
            if self._odd_keys > MOST_ODD_KEYS:
                raise Refused(f"more than {MOST_ODD_KEYS} keys that are neither texts nor small numbers")
        return self._run(function, *self._tensor_arguments(function, arguments))

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        self.stack.append(self._make(self.stack.pop(), arguments, {}))

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_newobj_ex(self) -> None:
        keywords = self.stack.pop()
        arguments = self.stack.pop()
        self.stack.append(self._make(self.stack.pop(), arguments, keywords))

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def _make(self, kind: Any, arguments: tuple, keywords: dict) -> Any:
        named = self._allowed(kind)
        if named.called and not named.built and not keywords:
            return self._call(kind, arguments)  # a Python or torch value, which `__new__` alone makes
        if not named.built or not isinstance(kind, type):
            raise Refused(f"an object of {_describe(kind)}")
        if kind is Opaque:
            return Opaque()
        if self.trust.owns(kind):
            return self._run(kind.__new__, kind, *arguments, **keywords)
        if arguments or keywords:
            raise Refused(f"an object of {_describe(kind)} made from arguments")
        return object.__new__(kind)

    def _instantiate(self, kind: Any, arguments: Any) -> None:
        raise Refused(f"a call of {_describe(kind)}")

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        kind = type(target)
        if kind is Opaque:
            pass
        elif self.trust.owns(kind):
            self._run(_give_state, target, state)
        elif is_library_module(kind):
            if type(state) is not dict:
                raise Refused(f"a state of {_describe(kind)} that is not a dict")
            self._check_attributes(kind, state)
            self._given_state.append(target)
            kind.__setstate__(target, state)
        elif kind is functools.partial:
            self._fill_partial(target, state)
        elif isinstance(target, np.dtype):
            _complete_dtype(target, state)
        elif kind is uuid.UUID:
            target.__setstate__({"int": int(state["int"])})
        elif kind is np.ndarray:
            _fill_array(target, state)
        elif (named := self.named.get(id(kind))) and (named.built or kind is collections.OrderedDict):
            if type(state) is not dict:
                raise Refused(f"a state of {_describe(kind)} that is not a dict")
            self._check_attributes(kind, state)
            self._given_state.append(target)
            target.__dict__.update(state)
        else:
            raise Refused(f"a state for {_describe(kind)}")

    dispatch[pickle.BUILD[0]] = load_build

    def _fill_partial(self, target: functools.partial, state: Any) -> None:
        function, arguments, keywords, attributes = state
        if id(function) not in self.named or type(arguments) is not tuple or type(keywords) is not dict or attributes:
            raise Refused("a functools.partial of something else than torch's functions and modules")
        target.__setstate__((function, arguments, keywords, None))  # type: ignore[attr-defined]

    def _check_container(self, target: object, *plain: type) -> None:
        if type(target) not in (*plain, Opaque) and not self.trust.owns(type(target)):
            raise Refused(f"values put into {_describe(type(target))}")

    def load_append(self) -> None:
        self._check_container(self.stack[-2], list, collections.deque)
        super().load_append()

    dispatch[pickle.APPEND[0]] = load_append

    def load_appends(self) -> None:
        self._check_container(self.metastack[-1][-1], list, collections.deque)
        super().load_appends()

    dispatch[pickle.APPENDS[0]] = load_appends

    def load_setitem(self) -> None:
        self._check_container(self.stack[-3], *MAPPINGS)
        super().load_setitem()

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        self._check_container(self.metastack[-1][-1], *MAPPINGS)
        super().load_setitems()

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_additems(self) -> None:
        self._check_container(self.metastack[-1][-1], set)
        super().load_additems()

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_binpersid(self) -> None:
        key = self.stack.pop()
        if type(key) is not tuple or not key:
            raise Refused("an object from outside the file")
        if key[0] == "module":  # PyTorch before 1.6: (class, source file, source)
            self.stack.append(key[1])
            return
        if key[0] == "storage" and (type(key[4]) is not int or not 0 <= key[4] <= self.size):
            raise Refused("a tensor that is larger than the file")
        self.stack.append(self.persistent_load(key))

    dispatch[pickle.BINPERSID[0]] = load_binpersid

    def _refuse_opcode(self) -> None:
        raise Refused("a pickle instruction that torch.save never writes")

    for _opcode in (pickle.PERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        dispatch[_opcode[0]] = _refuse_opcode

    def load_bytearray8(self) -> None:
        length = int.from_bytes(self.read(8), "little")
        if length > self.size:
            raise Refused("bytes that are longer than the file")
        self.append(bytearray(self.read(length)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def _run(self, function: Any, *arguments: Any, **keywords: Any) -> Any:
        """Call an allowed function; raise TrustedCodeError if the user's own code fails, unlike for damaged files."""
        trusted = self.trust.owns(function) or any(self.trust.owns(type(argument)) for argument in arguments[:1])
        trusted = trusted or any(self.trust.owns(argument) for argument in arguments[:1])
        if not trusted:
            return function(*arguments, **keywords)
        try:
            return function(*arguments, **keywords)
        except Refused:
            raise
        except (Exception, SystemExit) as error:
            raise TrustedCodeError from error


def _give_state(target: Any, state: Any) -> None:
    """Set an object's state as pickle does for BUILD."""
    if hasattr(target, "__setstate__"):
        target.__setstate__(state)
        return
    slots = None
    if type(state) is tuple and len(state) == 2:
        state, slots = state
    if state:
        target.__dict__.update(state)
    for name, value in (slots or {}).items():
        setattr(target, name, value)


def _complete_dtype(target: np.dtype, state: Any) -> None:
    """Give a fresh dtype its byte order, and the unit of times; its code sets everything else."""
    order, fields = state[1], state[2:5]
    units: Any = state[8] if len(state) > 8 else None
    if order not in ("<", ">", "=", "|") or fields != (None, None, None):
        raise Refused("a numpy array of Python objects")
    complete = target.newbyteorder("<" if order == "<" else ">") if order in ("<", ">") else target
    if target.kind in "mM":
        _, (unit, count, *_) = units
        if type(count) is not int or unit not in TIME_UNITS:
            raise Refused("a numpy array of times of an unknown unit")
        if unit != b"generic":
            complete = np.dtype(f"{complete.str}[{count}{unit.decode()}]")
    target.__setstate__(complete.__reduce__()[2])  # type: ignore[attr-defined]


def _fill_array(target: np.ndarray, state: Any) -> None:
    _, shape, dtype, fortran, data = state
    check_array(shape, dtype, data)
    target.__setstate__((1, tuple(shape), np.dtype(dtype.str), bool(fortran), bytes(data)))  # type: ignore[arg-type]


def _keys_of(kind: Any, arguments: tuple) -> Iterator[Any]:
    """Yield what becomes keys of a collection: the elements, or the first of each pair."""
    pairs = kind in MAPPINGS and kind is not collections.Counter
    for collection in arguments:
        if isinstance(collection, list | tuple | set | frozenset | dict | collections.deque):
            for element in collection:
                yield element[0] if pairs and isinstance(element, list | tuple) and element else element


def _describe(value: object) -> str:
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return f"a {type(value).__name__}"
