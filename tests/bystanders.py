"""A reader's own files, under all the names that the library writes."""

FILES = (
    "final/chapter1.txt",
    "final.tmp/notes.txt",
    "unfinished/plan.md",
    "draft/poem.txt",
    ".draft-final-1/poem.txt",
    ".trash-final-1/poem.txt",
    "step-by-step-tutorial/index.html",
    "step-plan.md",
    "step-0000003-good/model.safetensors",
    "step-0000003/model.safetensors",
    "step-3/model.safetensors",
    "checkpoints/model.safetensors",
    "levels.json",
    "run.tmp",
    "run.json",
    "training.json",
    "report.html",
    "config.json",
    "tokenizer.json",
    "model.safetensors",
    ".dblm.json",
    ".run.json.1-0.dblm-tmp",
    "notes.txt",
)


def put(folder, names=FILES):
    """Write each file, with its own name as content."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {name}", "utf-8")


def snapshot(folder):
    """Relative path -> bytes of a file, target of a link, None of a folder."""
    return {
        path.relative_to(folder).as_posix(): _content(path)
        for path in folder.rglob("*")
    }


def _content(path):
    if path.is_symlink():
        return str(path.readlink())
    return None if path.is_dir() else path.read_bytes()


def lost(before, after):
    """Names that are gone or have changed."""
    return sorted(n for n in before if after.get(n, 0) != before[n])
