"""``dblm info``: versions, what data/ holds, and its figures."""

import json

from .. import __version__, resources
from .printing import print_rows

__all__ = ["run"]


def run(options):
    """Print versions, artefacts and figures."""
    from .. import tales

    artifacts = resources.manifest()["artifacts"]
    facts = _versions() | {
        "entropy of the grammar, nats a tale": round(tales.entropy(), 4)
    }
    measured = _measure() if options.measure else {}
    if options.json:
        facts |= {"artifacts": artifacts, "measured now": measured}
        print(json.dumps(facts, indent=1))
        return
    print_rows(facts)
    for name, record in artifacts.items():
        command, seconds = record.get("command"), record.get("seconds")
        print(f"\n{name}: {command} ({seconds} s)")
        print_rows(record.get("metrics", {}), "  ")
    if measured:
        print("\nmeasured now:")
        print_rows(measured, "  ")


def _versions():
    import torch
    import transformers

    return {
        "dblm": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(resources.device()),
        "data": str(resources.data_path()),
    }


def _measure():
    """Measure the embedded GPT-2 as `make checkpoints` did."""
    from .. import metrics, tales, text

    backbone = resources.load_backbone("tales-gpt2")
    valid = text.load("tales", size=1).valid
    nats, error = metrics.nats_per_tale(*backbone, valid)
    share, broken = metrics.coherent_share(
        metrics.sample_language_model(*backbone, 500)
    )
    return {
        "valid_nats_per_tale": round(nats, 4),
        "valid_standard_error": round(error, 4),
        "above_entropy_percent": round(100 * (nats / tales.entropy() - 1), 3),
        "coherent_share_of_500": round(share, 4),
        "broken": dict(broken),
    }
