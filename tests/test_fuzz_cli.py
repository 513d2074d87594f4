"""Whatever is typed: no traceback, no file lost, an exit code as documented.

Commands, prompts, text files and folders are drawn by hypothesis. A few
hundred of them run with the other tests; ``DBLM_FUZZ=10000`` runs so many,
and ``DBLM_FUZZ_SEED`` draws others.
"""

import contextlib
import functools
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from bystanders import FILES, lost, put, snapshot
from hypothesis import HealthCheck, Phase, event, given, seed, settings
from hypothesis import strategies as st
from small_book import small_book

from dblm_lib import cli, evaluation, storage, tales, text, unmasking

EXAMPLES = int(os.environ.get("DBLM_FUZZ", "250"))
SEED = int(os.environ.get("DBLM_FUZZ_SEED", "16"))
QUICK = ["--steps", "3", "--batch-size", "2", "--seq-len", "16"]
STORIES = "\n\n".join(tales.corpus(12, seed=3))


# --- what is there ----------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A book, a tiny GPT-2 and a finished run; few tales are enough."""
    root = tmp_path_factory.mktemp("base")
    load = text.load
    fewer = functools.cache(lambda *given: load(*given))

    def small(name="tales", size=50, valid_size=20, test_size=0):
        if str(name) == "tales":
            most = min(size, 50), min(valid_size, 20), min(test_size, 20)
            return fewer(name, *most)
        return load(name, size, valid_size, test_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBLM_DATA", str(small_book(root / "data")))
        patch.delenv("DBLM_TINYSTORIES", raising=False)
        patch.setenv("HF_HOME", str(root / "hub"))
        patch.setattr(text, "load", small)
        evaluation.training_tales.cache_clear()
        save_gpt2(root)
        (root / "stories.txt").write_text(STORIES, "utf-8")
        options = "--text", root / "stories.txt", "--backbone", root / "g"
        arguments = ["train", "--out", root / "run", *options, *QUICK]
        assert cli.main([str(a) for a in arguments]) == 0
        yield root
    evaluation.training_tales.cache_clear()


def save_gpt2(root):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=1024,
        n_positions=32,
        n_embd=8,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(root / "g")
    shutil.copy(root / "data" / "tokenizer" / "tokenizer.json", root / "g")


# --- what is drawn ----------------------------------------------------------

ANY = st.one_of(
    st.text(max_size=12),
    st.binary(max_size=12).map(os.fsdecode),  # a shell in another encoding
    st.sampled_from(
        ["", " ", "-", "--", "~", "~nosuchuser/x", "\ud800", "a\0b", "💤" * 90]
        + [
            "%s",
            "{}",
            "a" * 300,
            "../x",
            "C:\\Users\\me\\run",
            "<|endoftext|>",
        ]
    ),
)
WHOLE = st.one_of(
    *[st.sampled_from(["1", "2", "3"])] * 4,
    st.sampled_from(
        ["0", "-1", "2.5", "x", "", " 1", "1e3", "٢", "9" * 5000, "nan"]
        + ["inf", "+1", "-0", "0x10", "1000001", "9" * 30, "None", "\udcff"]
    ),
)
SEEDS = st.one_of(
    st.integers(0, 2**32 - 1).map(str),
    st.sampled_from(["-1", "x", str(2**32), "9" * 5000, "²", "1.0", ""]),
)
FLOATS = st.one_of(
    st.floats(width=32).map(str),
    st.sampled_from(["1", "0.5", "2", "20", "x", "", "1e999", "-0", "1e-300"]),
)
ORDERS = st.one_of(
    st.sampled_from([*unmasking.ORDERS, "Random", "tau", "accept"]), ANY
)
PROMPTS = st.one_of(
    st.sampled_from(
        ["One sunny morning,", "the night ", " the", "xqzt", "the night " * 40]
        + ["the\x00night\x1b[2J", "Anna felt sad <|endoftext|>", "the \udcff"]
    ),
    ANY,
)
CONTENTS = st.one_of(
    st.sampled_from(
        [b"", b"\x00" * 9, b"\xff\xfea\x00", b"{}", b"[]", b"null", b"{"]
        + [b'{"model_type": "dblm"}', b'{"model_type": "gpt2"}', b"[" * 9999]
        + [b'{"owner": "a", "settings": {}}', b'{"owner": "a", "files": {}}']
        + [b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", b"\xff" * 16]
    ),
    st.binary(max_size=40),
)
TEXTS = st.one_of(
    *[st.just(STORIES.encode())] * 2,
    st.sampled_from(
        [b"", b" \n\n \n", b"one text only", b"a.\n\nb.", b"\x00\n\n\x00\n\n"]
        + [b"\xef\xbb\xbf" + STORIES.encode(), b"\xff\xfe", b"a" * 99_999]
        + [STORIES.replace("\n", "\r\n").encode(), STORIES.encode("utf-16")]
        + [b"a<|endoftext|>b<|endoftext|>c", b"<|endoftext|>", b"a\n\n\xff"]
        + [
            ("night " * 9_999 + "\n\n").encode() * 3,
            b"\n\n.".join([b"a"] * 99),
        ]
    ),
    st.lists(st.text(max_size=30)).map(lambda x: "\n\n".join(x).encode()),
)
# Places: in the world that is drawn, "@" for the things that are always there.
FOLDERS = st.sampled_from(
    ["mine", "new", "new/er", "mine/final", "copy", "copy/final", "text.txt"]
    + ["mine/step-0000003", "final", ".", "./mine", "~/run", "text.txt/run"]
    + ["link", "tales-dblm", "./tales-dblm", "exact", "mine/deeper"]
)
MODELS = st.one_of(
    st.sampled_from(
        ["tales-dblm", "exact", "@run/final", "hurt", "hurt", "hurt", "@g"]
        + ["tales-mdlm"]
    ),
    st.sampled_from(
        ["@run", "TALES-DBLM", "tales-gpt2", "gpt2", "a/b", "@data", "tales"]
    ),
    FOLDERS,
    ANY,
)


def option(name, values):
    return st.tuples(st.just(name), values).map(list)


def some(*options):
    """Some of the options, in any order."""
    return st.lists(
        st.one_of(*options), max_size=len(options), unique_by=lambda x: x[0]
    ).map(lambda parts: [word for part in parts for word in part])


def flag(name):
    return st.just([name])


SAMPLE = st.tuples(
    st.just(["sample", "--steps", "2"]),
    some(
        option("--model", MODELS),
        option("--prompt", PROMPTS),
        option("-n", WHOLE),
        option("--steps", WHOLE),
        option("--length", st.one_of(WHOLE, st.sampled_from(["20", "33"]))),
        option("--seed", SEEDS),
        option("--order", ORDERS),
        option("--stagger", FLOATS),
        option("--temperature", FLOATS),
        flag("--check"),
        flag("--show"),
    ),
)
EVAL = st.tuples(
    st.just(["eval", "--samples", "2", "--continued", "0"]),
    st.one_of(MODELS, st.sampled_from(["@run/final", "hurt"])).map(
        lambda name: [name]
    ),
    some(
        option("--samples", WHOLE),
        option("--continued", st.one_of(WHOLE, st.just("0"))),
        option("--seed", SEEDS),
        flag("--json"),
    ),
    option("--steps", WHOLE),
)
TRAIN = st.tuples(
    st.just(["train", "--backbone", "@g", *QUICK]),
    option("--out", st.one_of(st.just("new"), FOLDERS, FOLDERS, ANY)),
    option("--text", st.one_of(*[st.just("text.txt")] * 5, FOLDERS, ANY)),
    some(
        option("--backbone", MODELS),
        option("--steps", WHOLE),
        option("--batch-size", st.sampled_from(["1", "3", "0", "x"])),
        option("--learning-rate", FLOATS),
        option("--seq-len", st.one_of(WHOLE, st.sampled_from(["32", "33"]))),
        option("--seed", SEEDS),
        option("--recipe", st.sampled_from(["proposal", "repaired", "x"])),
        option("--noise", st.sampled_from(["mask", "mask", "gaussian", "x"])),
        flag("--causal"),
        flag("--resume"),
    ),
)
RESUME = st.tuples(
    st.just(["train", "--out", "copy", "--resume"]),
    some(option("--steps", WHOLE), option("--text", FOLDERS)),
)
DENOISE = st.tuples(
    st.just(["denoise", "--steps", "2"]),
    st.tuples(PROMPTS).map(list),
    some(
        option("--model", MODELS),
        option("--level", FLOATS),
        option("--steps", WHOLE),
        option("--seed", SEEDS),
        flag("--guess"),
    ),
)
INFO = st.tuples(st.just(["info"]), some(flag("--json")))
WORDS = st.one_of(
    ANY,
    MODELS,
    WHOLE,
    st.sampled_from(
        ["info", "--json", "--help", "-h", "--version", "--steps"]
    ),
)
ANYTHING = st.tuples(st.lists(WORDS, max_size=5)).filter(
    # Without their numbers these two would take minutes.
    lambda parts: not {"train", "eval"} & set(parts[0])
)
COMMANDS = st.one_of(
    SAMPLE, EVAL, TRAIN, TRAIN, RESUME, DENOISE, INFO, ANYTHING
).map(lambda parts: [word for part in parts for word in part])
JUNK = st.sampled_from([None, -5, 0, 1, 2.5, "x", "", [], {}, True, "cosine"])
FIELDS = st.dictionaries(
    st.sampled_from(
        ["seq_len", "n_positions", "vocab_size", "n_embd", "n_head", "head"]
        + ["schedule", "schedule_options", "sampler", "loss", "embed_dim"]
        + ["eos_token_id", "causal", "conditioning", "shift", "dtype"]
        + ["model_type", "input_std", "max_position_embeddings", "stagger"]
        + ["noise", "weighting", "low"]
    ),
    JUNK,
    min_size=1,
    max_size=3,
)
KEPT = st.dictionaries(
    st.sampled_from(
        ["text", "backbone", "steps", "batch_size", "learning_rate", "seq_len"]
        + ["seed", "causal", "proposal", "recipe", "owner", "settings"]
        + ["noise"]
    ),
    JUNK,
    max_size=2,
)
MODEL_FILES = ["config.json", "model.safetensors", "tokenizer.json"]
# A model of which one file was changed: its fields, a byte, or its length.
HURT = st.one_of(
    FIELDS.map(lambda fields: ("config.json", fields)),
    st.tuples(st.sampled_from(MODEL_FILES), st.floats(0, 1)),
    st.tuples(st.sampled_from(MODEL_FILES), CONTENTS),
    st.tuples(
        st.sampled_from(MODEL_FILES),
        st.tuples(st.floats(0, 0.999), st.integers(0, 255)),
    ),
)
WORLD = st.fixed_dictionaries(
    {
        "files": st.dictionaries(st.sampled_from(FILES), CONTENTS, max_size=4),
        "where": st.sampled_from(["mine", "mine", ".", "copy", "copy/final"]),
        "text": TEXTS,
        "copied": st.booleans(),
        "kept": st.one_of(*[st.just({})] * 3, KEPT),
        "hurt": HURT,
        "filling": st.booleans(),
        "encoding": st.sampled_from(["utf-8", "utf-8", "ascii", "cp1252"]),
    }
)


def build(world, root, base):
    """Put the world on the disk."""
    (root / "text.txt").write_bytes(world["text"])
    os.symlink("nowhere", root / "link")
    place = "data/checkpoints/tales-mdlm" if world["filling"] else "run/final"
    shutil.copytree(base / place, root / "hurt")
    hurt(root / "hurt" / world["hurt"][0], world["hurt"][1])
    if world["copied"]:
        shutil.copytree(base / "run", root / "copy")
        kept = json.loads((root / "copy" / "run.json").read_text("utf-8"))
        for name, value in world["kept"].items():
            part = kept if name in kept else kept["settings"]
            part[name] = value
            if name == "settings":
                break
        (root / "copy" / "run.json").write_text(json.dumps(kept), "utf-8")
    for name, content in world["files"].items():
        path = root / world["where"] / name
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    put(root / "mine" / "deeper", ("step-by-step/a.md",))


def hurt(path, how):
    """Change a file of a model."""
    content = path.read_bytes()
    if isinstance(how, dict):
        content = json.dumps(json.loads(content) | how).encode()
    elif isinstance(how, float):
        content = content[: int(how * len(content))]
    elif isinstance(how, bytes):
        content = how
    else:
        place, byte = how
        content = bytearray(content)
        content[int(place * len(content))] = byte
    path.write_bytes(content)


def inside(name, root):
    """Whether a folder of that name would lie in the world."""
    with contextlib.suppress(ValueError):
        path = os.path.abspath(os.path.expanduser(name))
        return path.startswith(str(root))
    return True


def place(arguments, root, base):
    """Write out what "@" stands for; an OUT elsewhere becomes one here."""
    words = [
        str(base / word[1:]) if word.startswith("@") else word
        for word in arguments
    ]
    for i, word in enumerate(words[:-1]):
        if word == "--out" and not inside(words[i + 1], root):
            words[i + 1] = "new"
    return words


def run(arguments, encoding):
    """Exit code, output and errors, as a console of that encoding sees it."""
    streams = [
        io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        for _ in range(2)
    ]
    with (
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
    ):
        try:
            code = cli.main(arguments)
        except SystemExit as stop:  # argparse
            code = stop.code
    for stream in streams:
        stream.flush()
    out, error = (s.buffer.getvalue().decode(encoding) for s in streams)
    return code, out, error


def check(arguments, code, out, error, before, after, ours):
    """The three invariants."""
    assert code in (0, 1, 2), code
    assert "Traceback" not in error and "Traceback" not in out
    assert all(c.isprintable() or c == "\n" for c in out + error)
    if code:
        last = error.rstrip("\n").split("\n")[-1]
        assert last.startswith("dblm"), error
    # Lost or changed is nothing but what the run itself wrote before.
    assert [n for n in lost(before, after) if n not in ours] == []
    new = {name.split("/")[-1] for name in set(after) - set(before)}
    if arguments[:1] != ["train"]:
        assert not new and not lost(before, after)
    elif code == 2:
        assert new <= {storage.LOCK}


@seed(SEED)
@settings(
    max_examples=EXAMPLES,
    derandomize=False,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(COMMANDS, WORLD)
def try_it(base, arguments, world):
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as s:
        root = Path(folder).resolve()
        patch = s.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("HOME", str(root))
        s.enter_context(contextlib.chdir(root))
        # A new run with the usual steps would take minutes.
        world["copied"] |= arguments[:3] == ["train", "--out", "copy"]
        build(world, root, base)
        arguments = place(arguments, root, base)
        ours = set()
        if world["copied"] and "train" in arguments:
            ours = {f"copy/{name}" for name in snapshot(base / "run")}
            ours -= {f"{world['where']}/{name}" for name in world["files"]}
        before = snapshot(root)
        found = run(arguments, world["encoding"])
        event(f"{arguments[0] if arguments else ''} {found[0]}"[:12])
        check(arguments, *found, before, snapshot(root), ours)


@pytest.mark.slow
def test_no_traceback_no_file_lost_and_a_documented_code(base):
    kept = snapshot(base)
    try_it(base)
    assert lost(kept, snapshot(base)) == []


def test_the_invariants_can_fail():
    """A file that is gone, a code that nobody knows, a new file."""
    before = {"a": b"1", "copy/run.json": b"2"}
    fine = ["info"], 0, "", "", before, before, set()
    check(*fine)
    for i, wrong in (
        (1, None),
        (1, 3),
        (1, 2),  # without a word
        (3, "Traceback (most recent call last)"),
        (5, {"a": b"1"}),
        (5, {**before, "a": b"2"}),
        (5, {**before, "b": b""}),
    ):
        with pytest.raises(AssertionError):
            check(*fine[:i], wrong, *fine[i + 1 :])
