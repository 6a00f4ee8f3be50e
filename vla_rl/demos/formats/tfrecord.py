"""TFRecord files of `tf.train.Example`, read without tensorflow.

A record is its length (u64), a checksum of that (u32), the payload, a checksum of the payload (u32), little-endian.
Both checksums are compared. The payload is a protocol buffer: a map from names to lists of bytes, floats or integers.
Byte strings (pictures) are not copied: the answer says where in the file they lie.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from vla_rl.demos.formats.layout import require

HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")
BYTES_LIST, FLOAT_LIST, INT64_LIST = 1, 2, 3  # field numbers of tf.train.Feature
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


@dataclass(frozen=True, slots=True)
class Place:
    """A byte string within a file."""

    offset: int
    length: int


Feature = list[Place] | np.ndarray  # byte strings, or float32 or int64 numbers


def read_records(path: Path) -> Iterator[dict[str, Feature]]:
    """The features of every record, by name.

    Raises:
        ValueError: the file is cut off or damaged.
        UserError: the package that computes checksums is not installed.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        for number in count():
            begin, header = file.tell(), file.read(HEADER.size)
            if not header:
                return
            where = f"record {number}, at byte {begin},"
            if len(header) < HEADER.size:
                raise ValueError(f"{where} is cut off")
            length, checksum = HEADER.unpack(header)
            if masked_crc32c(header[:8]) != checksum:
                raise ValueError(f"{where} is damaged: its length does not have the checksum that is stored")
            if length > size - begin - HEADER.size - FOOTER.size:
                raise ValueError(f"{where} is cut off")
            payload = file.read(length)
            if (masked_crc32c(payload),) != FOOTER.unpack(file.read(FOOTER.size)):
                raise ValueError(f"{where} is damaged: its content does not have the checksum that is stored")
            yield _example(payload, begin + HEADER.size)


def masked_crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and offset as TFRecord stores it.

    Example:
        >>> hex(masked_crc32c(b"123456789"))  # of the CRC 0xe3069283
        '0xc7858f9b'
    """
    crc = require("google_crc32c").value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _example(payload: bytes, base: int) -> dict[str, Feature]:
    """`base`: where in the file the payload begins."""
    features: dict[str, Feature] = {}
    for _, begin, end in _messages(payload, 0, len(payload)):  # Example.features
        for _, entry_begin, entry_end in _messages(payload, begin, end):  # the map's entries
            name, feature = "", None
            for number, part_begin, part_end in _messages(payload, entry_begin, entry_end):
                if number == 1:
                    name = payload[part_begin:part_end].decode()
                else:
                    feature = _feature(payload, part_begin, part_end, base)
            features[name] = [] if feature is None else feature
    return features


def _feature(payload: bytes, begin: int, end: int, base: int) -> Feature | None:
    for kind, list_begin, list_end in _messages(payload, begin, end):
        if kind == BYTES_LIST:
            return [Place(base + at, stop - at) for _, at, stop in _messages(payload, list_begin, list_end)]
        packed = list(_messages(payload, list_begin, list_end))
        if kind == FLOAT_LIST:
            return np.concatenate([np.frombuffer(payload[at:stop], "<f4") for _, at, stop in packed] or [np.empty(0)])
        if kind == INT64_LIST:
            return np.array([number for _, at, stop in packed for number in _varints(payload, at, stop)], np.int64)
    return None


def _messages(payload: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of every field of the message in payload[at:end]."""
    while at < end:
        key, at = _varint(payload, at)
        kind = key & 7
        if kind == LENGTH_DELIMITED:
            length, at = _varint(payload, at)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        elif kind == VARINT:
            length = _varint(payload, at)[1] - at
        else:
            raise ValueError(f"no field of a protocol buffer has wire type {kind}")
        if at + length > end:
            raise ValueError("a field goes beyond its message")
        yield key >> 3, at, at + length
        at += length


def _varints(payload: bytes, at: int, end: int) -> Iterator[int]:
    while at < end:
        number, at = _varint(payload, at)
        yield number - (1 << 64) if number >> 63 else number


def _varint(payload: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(payload) or shift > 63:
            raise ValueError("a number goes beyond its message")
        byte = payload[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            if number >> 64:
                raise ValueError("a number has more than 64 bits")
            return number, at
