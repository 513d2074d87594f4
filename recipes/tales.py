"""A thousand held-out tales as a plain file, for readers who want to look.

Takes a second; nothing is trained.
"""

from dblm_lib import tales, text

from .common import VALID_TALES


def make(folder, data=None, work=None, jobs=1):
    """Write the tales; count them."""
    texts = text.load("tales", size=1, valid_size=VALID_TALES).valid
    lines = "\n".join(texts) + "\n"
    (folder / "valid.txt").write_text(lines, "utf-8", newline="\n")
    counts = [len(tales.tokens(t)) for t in texts]
    return {
        "tales": len(texts),
        "word_types": len(tales.vocabulary()),
        "entropy_nats_per_tale": round(tales.entropy(), 4),
        "mean_words_and_marks": round(sum(counts) / len(counts), 2),
        "longest": max(counts),
    }
