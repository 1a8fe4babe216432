"""Builders of TorchScript files that do more than a model does, or lie. Payloads create a marker file."""

import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path: Path, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(f"model/{name}", data)


def edit(path: Path, record: str, change: Callable[[bytes], bytes]) -> None:
    contents = records(path)
    contents[record] = change(contents.get(record, b""))
    write(path, contents)


def write_linear(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(3, 2))), path)


def with_line(
    line: str, method: str = "forward", signature: str = "x: Tensor) -> Tensor", result: str = "x"
) -> Callable:
    """A file whose method has this line, in which MARKER stands for the marker's path."""

    def build(path: Path, marker: Path) -> None:
        torch.jit.save(torch.jit.script(Plain()), path)
        code = records(path)["code/__torch__/hostile_torchscript.py"].decode()
        head, _, _ = code.partition("  def forward")
        own = re.search(r"self: ([\w.]+)", code)
        assert own
        body = "".join(f"    {part}\n" for part in line.replace("MARKER", str(marker)).splitlines())
        text = f"{head}  def {method}(self: {own[1]},\n    {signature}:\n{body}    return {result}\n"
        if method != "forward":
            text += f"  def forward(self: {own[1]},\n    x: Tensor) -> Tensor:\n    return x\n"
        edit(path, "code/__torch__/hostile_torchscript.py", lambda _: text.encode())

    return build


class Stateful(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2

    @torch.jit.export
    def __getstate__(self) -> tuple[bool, Tensor]:
        return (self.training, torch.ones(1))

    @torch.jit.export
    def __setstate__(self, state: tuple[bool, Tensor]) -> None:
        self.training = state[0]


def _saving_state(path: Path, marker: Path) -> None:
    torch.jit.save(torch.jit.script(Stateful()), path)

    def change(code: bytes) -> bytes:
        assert code.count(b"self.training = ") == 1
        return code.replace(
            b"self.training = ", f'ops.aten.save((state)[1], "{marker}")\n    self.training = '.encode()
        )

    edit(path, "code/__torch__/hostile_torchscript.py", change)


SCRIPTS: dict[str, Callable[[Path, Path], None]] = {
    "saves when it is called": with_line('ops.aten.save(x, "MARKER")'),
    "saves, by another spelling": with_line('torch.save(x, "MARKER")'),
    "saves, by a name for torch": with_line('t = torch\nt.save(x, "MARKER")'),
    "reads a file": with_line('y = torch.from_file("/etc/passwd", False, 10)', result="y"),
    "saves while it is read": _saving_state,
    "an operator of another package": with_line("y = ops.mkldnn.data(x)", result="y"),
    "a compiled class": with_line("y = __torch__.torch.classes.quantized.Conv2dPackedParamsBase"),
    "sets the seed": with_line("torch.manual_seed(0)"),
    "calls another process": with_line("y = ops.prim.rpc_async(x)"),
    "Python code": with_line("import os"),
    "expressions without end": with_line("y = " + "(" * 5000 + "x" + ")" * 5000),
    "statements without end": with_line(
        "\n".join("  " * depth + "if True:" for depth in range(150)) + "\n" + "  " * 150 + "pass"
    ),
    "operators nested without end": with_line("y = " + "torch.neg(" * 120 + "x" + ")" * 120),
    "an attribute that is no tensor": with_line("y = self.nothing", result="y"),
}


def _edited_data(old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return lambda path: edit(path, "data.pkl", change)


def _deep(path: Path) -> None:
    edit(path, "data.pkl", lambda _: b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")


def _inside_itself(path: Path) -> None:
    edit(path, "data.pkl", lambda _: b"\x80\x02]q\x00h\x00a.")


def _doubled(path: Path) -> None:
    """2^60 paths to one list."""
    steps = b"]q\x00" + b"".join(b"](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(60))
    edit(path, "data.pkl", lambda _: b"\x80\x02" + steps + b".")


def _call(path: Path) -> None:
    edit(path, "data.pkl", lambda _: b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00trueq\x00\x85R.")


def _without(part: str) -> Callable[[Path], None]:
    return lambda path: write(path, {name: data for name, data in records(path).items() if part not in name})


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/constants.pkl", pickle.dumps((), 2))
        archive.writestr("model/data.pkl", bytes(10**7))
        archive.writestr("model/code/__torch__.py", b"")


ARCHIVES: dict[str, Callable[[Path], None]] = {
    "a tensor larger than its record": lambda path: edit(path, "data/0", lambda data: data[:4]),
    "a tensor that reaches beyond": _edited_data(b"(K\x02K\x03t", b"(K\x7fK\x03t"),
    "a class that is not declared": _edited_data(b"\nSequential\n", b"\nSequentiaX\n"),
    "an attribute of another type": _edited_data(b"training\x71", b"trainin_\x71"),
    "lists without end": _deep,
    "lists twice in lists": _doubled,
    "a list inside itself": _inside_itself,
    "a call of a function": _call,
    "no data": _without("data.pkl"),
    "no weights": _without("data/0"),
    "no code": _without("modules/linear"),
    "a compiled library": lambda path: edit(path, "data/aotinductor/model.so", lambda _: b"x"),
    "a file that leads elsewhere": lambda path: edit(path, "code/../../x.py", lambda _: b"x"),
    "code that is no text": lambda path: edit(path, "code/__torch__/more.py", lambda _: b"\xff\xfe"),
    "expands without measure": _bomb,
    "of another version": lambda path: edit(path, "version", lambda _: b"9999999"),
}
