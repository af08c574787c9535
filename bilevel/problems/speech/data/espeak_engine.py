"""espeak-ng by its C interface: text to samples and the times of its phones."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bilevel.errors import DatasetError
from bilevel.extras import require

_SYNCHRONOUS, _PHONES_IN_IPA = 2, 3
_RATE, _PITCH = 1, 3
_PHONE_EVENT = 7


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Synthesiser:
    """One voice at a time, in this process."""

    def __init__(self) -> None:
        loader = require("espeakng_loader", "speech")
        self._library = ctypes.CDLL(loader.get_library_path())
        folder = loader.get_data_path().encode()
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, folder, _PHONES_IN_IPA)
        if self.sample_rate <= 0:
            raise DatasetError(f"espeak-ng did not start (code {self.sample_rate})")
        self._chunks: list[NDArray[np.int16]] = []
        self._events: list[tuple[int, str]] = []
        self._callback = _Callback(self._receive)  # kept, or it would be collected
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(
        self, text: str, voice: str, rate: int, pitch: int
    ) -> tuple[NDArray[np.float32], list[tuple[float, str]]]:
        """Samples in [-1, 1], and (seconds, IPA symbol) where each phone begins; "" is a pause."""
        for code, name in (
            (self._library.espeak_SetVoiceByName(voice.encode()), f"voice {voice!r}"),
            (self._library.espeak_SetParameter(_RATE, rate, 0), f"rate {rate}"),
            (self._library.espeak_SetParameter(_PITCH, pitch, 0), f"pitch {pitch}"),
        ):
            if code != 0:
                raise DatasetError(f"espeak-ng has no {name} (code {code})")
        self._chunks, self._events = [], []
        encoded = text.encode() + b"\0"
        code = self._library.espeak_Synth(encoded, len(encoded), 0, 1, 0, 1, None, None)
        self._library.espeak_Synchronize()
        if code != 0 or not self._chunks:
            raise DatasetError(f"espeak-ng did not speak {text!r} as {voice!r} (code {code})")
        samples = np.concatenate(self._chunks).astype(np.float32) / np.float32(32768)
        return samples, [(at / self.sample_rate, symbol) for at, symbol in self._events]

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if count:
            self._chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        i = 0
        while events[i].type:
            if events[i].type == _PHONE_EVENT:
                name = events[i].id.string.decode(errors="replace")
                self._events.append((events[i].sample, name))
            i += 1
        return 0


@lru_cache(maxsize=1)
def synthesiser() -> Synthesiser:
    """The process's one synthesiser: the library keeps its state in global variables."""
    return Synthesiser()
