"""Messages between robots and the server: msgpack with numpy arrays, as openpi's clients write and read them.

An array is a map of its bytes, dtype and shape. Only booleans, integers and floats are arrays here: nothing that
arrives is ever unpickled or evaluated.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack
import numpy as np

from vla_rl.errors import UserError

ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"
DTYPE = re.compile(r"[<>=|]?(?:b1|[iu][1248]|f[248])")


def pack(message: Any) -> bytes:
    """A message of maps, lists, text, numbers and numpy arrays."""
    return msgpack.packb(message, default=_pack_array)


def unpack(data: bytes) -> Any:
    """What `pack`, or openpi's client, has packed. Arrays are views of `data`, which cannot be written to.

    Raises:
        UserError: it is no such message.
    """
    try:
        return msgpack.unpackb(data, object_hook=_unpack_array)
    except UserError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException) as e:
        raise UserError(f"the message is not msgpack ({type(e).__name__}: {e})") from e


def _pack_array(value: Any) -> dict[bytes, Any]:
    if isinstance(value, np.ndarray) and DTYPE.fullmatch(value.dtype.str):
        return {ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic) and DTYPE.fullmatch(value.dtype.str):
        return {SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _unpack_array(value: dict[Any, Any]) -> Any:
    if ARRAY not in value and SCALAR not in value:
        return value
    dtype, data = value.get(b"dtype"), value.get(b"data")
    if not isinstance(dtype, str) or not DTYPE.fullmatch(dtype):
        raise UserError(f"an array has the dtype {str(dtype)[:40]!r}; allowed: booleans, integers and floats")
    if SCALAR in value:
        return np.dtype(dtype).type(data)
    shape = value.get(b"shape")
    if not isinstance(shape, list | tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise UserError(f"an array has the shape {str(shape)[:40]}; a shape is a list of integers >= 0")
    kind = np.dtype(dtype)
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * kind.itemsize:
        raise UserError(f"an array of shape {str(shape)[:40]} and dtype {dtype} does not have as many bytes as it says")
    return np.frombuffer(data, kind).reshape(shape)
