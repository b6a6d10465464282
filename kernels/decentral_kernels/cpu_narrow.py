"""The CPU kernels of narrow codes; narrow.py says what these are."""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, types

from .cpu_parts import wide
from .layout import STAMP, UNIT
from .narrow import NO_WIDTH, TOO_LONG, TRUNCATED

u8 = np.uint8
_read_bytes, _bytes = types.Array(types.uint8, 1, "C", readonly=True), types.uint8[::1]
_int, _bool = types.int64, types.boolean
_SIGNATURE = _int(_read_bytes, _int, _int, _bool, _bytes)
_GROUP = UNIT // 8  # bytes for every bit that a unit's codes have
_STAMP = zlib.crc32(Path(__file__).read_bytes(), STAMP)


@njit(inline="always")
def _join(codes, width, lanes, planes, out):
    """Pack a unit; all but the arrays are constants, so that the loops over them unroll."""
    columns = UNIT // lanes
    for k in range(columns):
        for p in range(planes):
            byte = u8(0)
            for j in range(lanes):
                left = width * j - 8 * p
                if left >= 0 and left < 8:
                    byte = u8(byte | u8(codes[j * columns + k] << u8(left)))
                elif left < 0 and left > -width:
                    byte = u8(byte | u8(codes[j * columns + k] >> u8(-left)))
            out[p * columns + k] = byte


@njit(inline="always")
def _cut(packed, width, lanes, planes, codes):
    """Unpack a unit."""
    columns, mask = UNIT // lanes, u8((1 << width) - 1)
    for k in range(columns):
        for j in range(lanes):
            code = u8(0)
            for p in range(planes):
                left = 8 * p - width * j
                if left >= 0 and left < width:
                    code = u8(code | u8(packed[p * columns + k] << u8(left)))
                elif left < 0 and left > -8:
                    code = u8(code | u8(packed[p * columns + k] >> u8(-left)))
            codes[j * columns + k] = u8(code & mask)


# Twice the same chain: one function that did either would have to write to what is read-only.


@njit
def _pack(codes, width, out):
    wide()
    if width == 2:
        _join(codes, 2, 4, 1, out)
    elif width == 3:
        _join(codes, 3, 8, 3, out)
    elif width == 4:
        _join(codes, 4, 2, 1, out)
    elif width == 5:
        _join(codes, 5, 8, 5, out)
    elif width == 6:
        _join(codes, 6, 4, 3, out)
    elif width == 7:
        _join(codes, 7, 8, 7, out)
    else:
        _join(codes, 8, 1, 1, out)


@njit
def _unpack(packed, width, codes):
    wide()
    if width == 2:
        _cut(packed, 2, 4, 1, codes)
    elif width == 3:
        _cut(packed, 3, 8, 3, codes)
    elif width == 4:
        _cut(packed, 4, 2, 1, codes)
    elif width == 5:
        _cut(packed, 5, 8, 5, codes)
    elif width == 6:
        _cut(packed, 6, 4, 3, codes)
    elif width == 7:
        _cut(packed, 7, 8, 7, codes)
    else:
        _cut(packed, 8, 1, 1, codes)


@njit
def _move_signs(codes, before, after):
    """Bring the sign from the top of `before` bits to that of `after`."""
    wide()
    sign, levels = u8(1 << (after - 1)), u8((1 << (min(before, after) - 1)) - 1)
    least = u8(1 << (before - 1))
    for k in range(UNIT):
        code = codes[k]
        codes[k] = u8(u8(code & levels) | (sign if code >= least else u8(0)))


@njit
def _copy(source, target):
    """Copy bytes in a plain loop, twice as fast as numba's assignment of slices."""
    wide()
    for k in range(target.size):
        target[k] = source[k]


@njit
def _width_of(codes, bits, zero_level):
    """Return the least width that the codes of a unit fit."""
    wide()
    used = u8(0)
    for k in range(UNIT):
        used = u8(used | codes[k])
    top = used & u8((1 << (bits - 1)) - 1)
    if top == 0 and zero_level:
        return 0
    width = 2
    while top >> (width - 1) > 0:
        width += 1
    return width


@lru_cache(maxsize=None)
def encoder() -> Any:
    """Return the kernel that writes a stream; it returns its length, -1 where there is no room."""
    stamp = _STAMP

    @njit(_SIGNATURE, nogil=True, cache=True)
    def encode_narrow(packed, numel, bits, zero_level, out):
        if stamp < 0:  # never; see layout.STAMP
            return -1
        codes, units = np.empty(UNIT, u8), numel // UNIT
        rest = packed[units * bits * _GROUP :]
        at = units
        for unit in range(units):
            source = packed[unit * bits * _GROUP : (unit + 1) * bits * _GROUP]
            _unpack(source, bits, codes)
            width = _width_of(codes, bits, zero_level)
            end = at + width * _GROUP
            if end + rest.size > out.size:
                return -1
            out[unit] = u8(width)
            if width == bits:
                _copy(source, out[at:end])
            elif width > 0:
                _move_signs(codes, bits, width)
                _pack(codes, width, out[at:end])
            at = end
        if at + rest.size > out.size:
            return -1
        out[at : at + rest.size] = rest
        return at + rest.size

    return encode_narrow


@lru_cache(maxsize=None)
def decoder() -> Any:
    """Return the kernel that reads a stream; it returns -1, or one of narrow.PROBLEMS."""
    stamp = _STAMP

    @njit(_SIGNATURE, nogil=True, cache=True)
    def decode_narrow(stream, numel, bits, zero_level, packed):
        if stamp < 0:
            return -1
        codes, units = np.empty(UNIT, u8), numel // UNIT
        rest = packed[units * bits * _GROUP :]
        at = units
        if at + rest.size > stream.size:
            return TRUNCATED
        for unit in range(units):
            width = np.int64(stream[unit])
            if width > bits or width == 1 or (width == 0 and not zero_level):
                return NO_WIDTH
            end = at + width * _GROUP
            if end + rest.size > stream.size:
                return TRUNCATED
            target = packed[unit * bits * _GROUP : (unit + 1) * bits * _GROUP]
            if width == bits:
                _copy(stream[at:end], target)
            elif width == 0:
                target[:] = u8(0)
            else:
                _unpack(stream[at:end], width, codes)
                _move_signs(codes, width, bits)
                _pack(codes, bits, target)
            at = end
        if at + rest.size < stream.size:
            return TOO_LONG
        rest[:] = stream[at:]
        return -1

    return decode_narrow
