"""Faults in checkpoints: bits, blocks, records, instructions of pickles, fields of JSON, headers of archives, code."""

import io
import json
import pickletools
import random
import zipfile
from collections.abc import Callable
from typing import Any

ODD_NUMBERS = (-1, 0, 1, 2, 127, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))
ODD_VALUES: tuple[Any, ...] = (
    *ODD_NUMBERS, 1e308, None, True, "", "x" * 10_000, "../../etc/passwd", "__import__('os')", "\0", [], {}, [[[]]],
)  # fmt: skip

Folder = dict[str, bytes]  # files by name


def damaged(files: Folder, draw: random.Random) -> Folder:
    """The files with one to three faults."""
    files = dict(files)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        name = draw.choice(sorted(files))
        files[name] = damaged_file(files[name], draw)
        if len(files) > 1 and draw.random() < 0.05:
            del files[draw.choice(sorted(files))]
    return files


def damaged_file(data: bytes, draw: random.Random) -> bytes:
    ways: list[Callable[[bytes, random.Random], bytes]] = [flip_bits, set_bytes, truncate, insert, move_block]
    if data[:4] == b"PK\x03\x04":
        ways = [*ways, *[edit_records] * 9, zip_surgery]
    elif data[:1] == b"{":
        ways = [*ways, *[edit_json] * 9]
    elif data[8:9] == b"{":
        ways = [*ways, *[edit_header] * 7]
    elif data[:1] == b"\x80":
        ways = [*ways, *[edit_pickle] * 7]
    try:
        return draw.choice(ways)(data, draw)
    except Exception:
        return flip_bits(data, draw)  # a second fault in what is no archive any more


def flip_bits(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(draw.choice((1, 1, 4, 32))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def set_bytes(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data or b"\0")
    at, width = draw.randrange(len(changed)), draw.choice((1, 2, 4, 8))
    changed[at : at + width] = (draw.choice(ODD_NUMBERS) % 256**width).to_bytes(width, "little")
    return bytes(changed)


def truncate(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def insert(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice((b"\0", b"\xff" * 9, draw.randbytes(draw.randrange(1, 64)))) + data[at:]


def move_block(data: bytes, draw: random.Random) -> bytes:
    start, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    block, rest = data[start:end][:4096], data[:start] + data[end:]
    at = draw.randrange(len(rest) + 1)
    return rest[:at] + block * draw.choice((1, 2)) + rest[at:]


def edit_records(data: bytes, draw: random.Random) -> bytes:
    """Another archive, whole in itself, with records changed, exchanged, taken out or added."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    names = sorted(records)
    # what is read as structure oftener than the elements of tensors
    told = [name for name in names if name.endswith((".pkl", ".py", ".json", "version", "byteorder", "archive_format"))]
    name, other = draw.choice(told if told and draw.random() < 0.8 else names), draw.choice(names)
    match draw.randrange(8):
        case 0:
            records[name], records[other] = records[other], records[name]
        case 1:
            del records[name]
        case 2:
            records[f"{name.split('/')[0]}/{draw.choice(('data/99', 'code/__torch__/more.py', 'extra/x', '../x'))}"] = (
                records[other]
            )
        case 3:
            records[draw.choice(("x", name + "x", name.replace("/", "//", 1)))] = records.pop(name)
        case _:
            records[name] = edited_record(name, records[name], draw)
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as archive:
        for key, value in records.items():
            archive.writestr(key, value)
    return buffer.getvalue()


def edited_record(name: str, data: bytes, draw: random.Random) -> bytes:
    if name.endswith(".pkl") and draw.random() < 0.8:
        return edit_pickle(data, draw)
    if name.endswith(".json") and draw.random() < 0.9:
        return edit_json(data, draw)
    if name.endswith(".py") and draw.random() < 0.8:
        return edit_code(data, draw)
    return draw.choice((flip_bits, set_bytes, truncate, insert, move_block))(data, draw)


def zip_surgery(data: bytes, draw: random.Random) -> bytes:
    """A field of a header changed: sizes, offsets, flags, attributes, names."""
    changed = bytearray(data)
    marks = [b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06"]
    places = [at for mark in marks for at in _places(data, mark)]
    at = draw.choice(places) + draw.randrange(4, 60)
    width = draw.choice((1, 2, 4))
    changed[at : at + width] = (draw.choice(ODD_NUMBERS) % 256**width).to_bytes(width, "little")
    return bytes(changed)


def _places(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


def edit_pickle(data: bytes, draw: random.Random) -> bytes:
    """One instruction replaced, taken out, doubled, or its argument changed."""
    starts = [place for _, _, place in pickletools.genops(data) if place is not None]
    number = draw.randrange(len(starts))
    start = starts[number]
    end = starts[number + 1] if number + 1 < len(starts) else start + 1
    step = data[start:end]
    match draw.randrange(7):
        case 0:
            step = b""
        case 1:
            step = step * 2
        case 2:
            step = draw.choice(pickletools.opcodes).code.encode("latin1") + step[1:]
        case 3:
            step = draw.choice(
                (b"K\x00", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"N")
            )
        case 4:
            other = draw.randrange(len(starts) - 1)
            step = data[starts[other] : starts[other + 1]]
        case 5:
            step = step[:1] + flip_bits(step[1:], draw) if len(step) > 1 else step + b"0"
        case 6:
            step = draw.choice((b"]" * 3000, b"(" * 3000, b"cbuiltins\neval\n", b"h\x00", b"}", b")", b"\x85" * 3000))
    return data[:start] + step + data[end:]


def edit_json(data: bytes, draw: random.Random) -> bytes:
    document = json.loads(data)
    owner, key = draw.choice(_leaves(document))
    match draw.randrange(6):
        case 0:
            if isinstance(owner, dict):
                owner[draw.choice(("x", "", "auto_map", "__class__"))] = owner.pop(key)
            else:
                owner.pop(key)
        case 1:
            others = _leaves(document)
            from_owner, from_key = draw.choice(others)
            owner[key] = from_owner[from_key]
        case 2 if isinstance(owner[key], int):
            owner[key] = owner[key] + draw.choice((-1, 1, 7))
        case _:
            owner[key] = draw.choice(ODD_VALUES)
    return json.dumps(document).encode()


def _leaves(document: Any) -> list[tuple[Any, Any]]:
    found, pending = [], [document]
    while pending:
        one = pending.pop()
        for key in list(one) if isinstance(one, dict) else range(len(one)):
            found.append((one, key))
            if isinstance(one[key], dict | list):
                pending.append(one[key])
    return found


def edit_header(data: bytes, draw: random.Random) -> bytes:
    """Of a safetensors file: its header is JSON."""
    length = int.from_bytes(data[:8], "little")
    header = edit_json(data[8 : 8 + length], draw)
    said = draw.choice((len(header), len(header), len(header), len(header) - 1, 2**40, 2**63))
    return said.to_bytes(8, "little") + header + data[8 + length :]


def edit_code(data: bytes, draw: random.Random) -> bytes:
    """One word of TorchScript's code replaced by another, a line taken out, doubled or nested."""
    lines = data.decode().split("\n")
    at = draw.randrange(len(lines))
    words = [word for line in lines for word in line.split()] or ["x"]
    match draw.randrange(6):
        case 0:
            lines[at] = ""
        case 1:
            lines.insert(at, lines[draw.randrange(len(lines))])
        case 2 | 3:
            inner = lines[at].split(" ")
            inner[draw.randrange(len(inner))] = draw.choice(words)
            lines[at] = " ".join(inner)
        case 4:
            lines[at] += draw.choice((" + ", "(", ")" * 300, " # x", "\\", '"', "[" * 300, " if True else ", "\0"))
        case 5:
            lines[at] = lines[at].replace(
                draw.choice(words), draw.choice(("torch.save", "1" * 400, "-1", "self", "x", "99999999999"))
            )
    return "\n".join(lines).encode()
