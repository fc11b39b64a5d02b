"""kvquant in Hugging Face transformers: calibration through autograd, and a cache for `generate`.

`attach` lets a model attend over packed pages, and hands out caches; `calibrate` makes the artifact. Models of the
types llama, mistral, qwen2, qwen3, gemma2 (calibration alone, as long as it caps attention's scores) and gemma3_text.
Needs torch and transformers 5: `pip install kvquant[hf]`.
"""

try:
    import torch as _torch  # noqa: F401
    import transformers as _transformers
except ImportError as _missing:
    raise ImportError(f"kvquant.hf needs {_missing.name}, which is not installed: pip install kvquant[hf]",
                      name=_missing.name) from _missing
if int(_transformers.__version__.split(".")[0]) != 5:
    raise ImportError(f"kvquant.hf: transformers {_transformers.__version__}, expected 5.x")

from kvquant.hf._attach import Attached, attach
from kvquant.hf._cache import KVQuantCache
from kvquant.hf._calibrate import calibrate, collect
from kvquant.hf._model import model_hash, shape_of
from kvquant.hf._windows import choose_windows

__all__ = ["Attached", "KVQuantCache", "attach", "calibrate", "choose_windows", "collect", "model_hash", "shape_of"]
