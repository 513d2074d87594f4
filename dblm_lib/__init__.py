"""The library behind *Words from Noise*, a book on diffusion language models.

Each module is named after the chapter that builds it. Importing the
package is quick and quiet: no network, no threads, no PyTorch until a
module that needs it is used.
"""

import importlib
import os

__version__ = "0.1.0"

# Progress bars and notices of the libraries below us would end up in the
# notebooks' outputs, where every run would differ. A reader's own settings
# win. They must be set before `transformers` is imported.
for _name, _value in {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(_name, _value)

_MODULES = (
    "ablation",
    "autoregressive",
    "checks",
    "cli",
    "conditionals",
    "configuration",
    "decoding",
    "denoiser",
    "diagnostics",
    "distillation",
    "drawings",
    "evaluation",
    "exercises",
    "ladder",
    "levels",
    "likelihood",
    "masked",
    "masking",
    "metrics",
    "muon",
    "noising",
    "plots",
    "popular",
    "posterior",
    "processes",
    "prompts",
    "renoising",
    "repair",
    "resources",
    "reverse",
    "schedules",
    "speed",
    "storage",
    "tales",
    "text",
    "training",
    "unmasking",
    "variety",
    "widgets",
    "writing",
)


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(["__version__", *_MODULES])
