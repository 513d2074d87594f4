"""Recipes: how everything in data/ was made, one file an artefact.

``python -m recipes --help`` says how to make it again.
"""

import importlib

# In the order in which they build on each other, with their places in data/.
PLACES = {
    "tales": "tales",
    "tokenizer": "tokenizer",
    "tales-gpt2": "checkpoints/tales-gpt2",
    "tales-gpt2-long": "checkpoints/tales-gpt2-long",
    "autopsy": "autopsy",
    "ladder": "ladder",
    "tales-dblm-teacher": "checkpoints/tales-dblm-teacher",
    "course": "course",
    "tales-dblm": "checkpoints/tales-dblm",
    "samplers": "samplers",
    "tales-mdlm": "checkpoints/tales-mdlm",
    "orders": "orders",
}


def load(name):
    """The module of a recipe.

    Each has ``make(folder, data, work, jobs)``: it fills ``folder``, finds
    what it builds on by `common.ingredient` in ``data``, keeps what it may
    go on with in ``work``, and returns what was measured.
    """
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
