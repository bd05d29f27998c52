"""Next-token logits of llama.cpp under control vectors that its own reader has loaded.

    python run_llama_cpp.py MODEL.gguf PROMPTS.json OUT.npz VECTOR.gguf ...

PROMPTS.json is a list of lists of token ids. OUT.npz gets `base` and the vectors by their place, each
`[prompts, vocabulary]`. Needs exactly the pinned `xllamacpp`, whose library has llama.cpp's functions but no
names for them in Python, and the declarations of `llama_cpp_py_sync`.
"""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp
from llama_cpp_py_sync._cffi_bindings import ffi

LIBRARY = str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")))
_READ = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"


class _Head(ctypes.Structure):
    """What stands in memory before the characters of a string, as this library was compiled."""

    _fields_ = [("length", ctypes.c_size_t), ("room", ctypes.c_size_t), ("owners", ctypes.c_long)]


class _File(ctypes.Structure):
    _fields_ = [("strength", ctypes.c_float), ("name", ctypes.c_void_p)]


class _Many(ctypes.Structure):
    _fields_ = [("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("room", ctypes.c_void_p)]


class _Read(ctypes.Structure):
    _fields_ = [("width", ctypes.c_int), ("data", _Many)]


def read(path: str) -> tuple[int, np.ndarray]:
    """Width, and float32 `[blocks above 0, width]` flat, as `common_control_vector_load` has them."""
    function = getattr(ctypes.CDLL(LIBRARY), _READ)
    function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]
    name = path.encode()
    text = ctypes.create_string_buffer(bytes(_Head(len(name), len(name), 1 << 20)) + name)
    file = _File(1.0, ctypes.addressof(text) + ctypes.sizeof(_Head))
    begin = ctypes.addressof(file)
    files, got = _Many(begin, begin + ctypes.sizeof(file), begin + ctypes.sizeof(file)), _Read()
    function(ctypes.byref(got), ctypes.byref(files))
    if got.width <= 0:
        sys.exit(f"{path}: llama.cpp does not read it")
    floats = ctypes.cast(got.data.begin, ctypes.POINTER(ctypes.c_float))
    return got.width, np.ctypeslib.as_array(floats, ((got.data.end - got.data.begin) // 4,)).copy()


class Model:
    """A model, and a context of one thread that keeps nothing between prompts."""

    def __init__(self, path: str) -> None:
        self.library = ffi.dlopen(LIBRARY)
        self.library.llama_backend_init()
        options = self.library.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = self.library.llama_model_load_from_file(path.encode(), options)
        settings = self.library.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 512
        settings.n_threads = settings.n_threads_batch = 1
        # By default attention is in half precision, which alone changes logits by 3e-4.
        settings.type_k = settings.type_v = self.library.GGML_TYPE_F32
        settings.flash_attn_type = self.library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = self.library.llama_init_from_model(self.model, settings)
        vocabulary = self.library.llama_model_get_vocab(self.model)
        self.n_tokens = self.library.llama_vocab_n_tokens(vocabulary)
        self.n_layer = self.library.llama_model_n_layer(self.model)

    def steered(self, path: str | None) -> None:
        """Add a control vector, or take it off again."""
        width, data = read(path) if path else (1, np.zeros(0, np.float32))
        pointer = ffi.from_buffer("float[]", data) if path else ffi.NULL
        set_vector = self.library.llama_set_adapter_cvec
        assert set_vector(self.context, pointer, data.size, width, 1, self.n_layer) == 0

    def logits(self, ids: list[int]) -> np.ndarray:
        """Of the token behind a prompt, `[vocabulary]`."""
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)
        tokens = ffi.new("int32_t[]", ids)
        batch = self.library.llama_batch_get_one(tokens, len(ids))
        assert self.library.llama_decode(self.context, batch) == 0
        last = self.library.llama_get_logits_ith(self.context, -1)
        return np.frombuffer(ffi.buffer(last, 4 * self.n_tokens), np.float32).copy()


def main() -> None:
    path, prompts, out, *vectors = sys.argv[1:]
    model, every = Model(path), json.loads(Path(prompts).read_text())
    told: dict[str, Any] = {}
    for name, vector in [("base", None), *((str(i), vector) for i, vector in enumerate(vectors))]:
        model.steered(vector)
        told[name] = np.stack([model.logits(ids) for ids in every])
    model.steered(None)
    assert np.array_equal(model.logits(every[0]), told["base"][0])
    np.savez(out, **told)


if __name__ == "__main__":
    main()
