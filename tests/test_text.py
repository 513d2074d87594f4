"""Texts come in whole, tokens go round, and a bad file is named."""

import functools
import os
import socket
import sys
import time

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from dblm_lib import resources, tales, text

SIZE = 3_000


@pytest.fixture(scope="module")
def tokenizer():
    return resources.load_tokenizer("tales")


@pytest.fixture(scope="module")
def corpus():
    return text.load("tales", size=SIZE)


# --- Tiny Tales -------------------------------------------------------------


def test_tales_are_the_same_every_time(corpus):
    again = text.load("tales", size=50, valid_size=20)
    assert again.train == corpus.train[:50]
    assert again.valid == corpus.valid[:20]
    assert corpus.name == "tales"
    assert (len(corpus.train), len(corpus.valid)) == (SIZE, 1000)


def test_held_out_tales_are_not_trained_on(corpus):
    train = set(text.load("tales").train)  # as many as a run uses
    assert not train & set(corpus.valid)


def test_a_third_part_is_neither_trained_on_nor_chosen_by(corpus):
    parts = text.load("tales", size=SIZE, test_size=300)
    assert parts.train == corpus.train and parts.valid == corpus.valid
    assert len(parts.test) == 300 and corpus.test == []
    assert not set(parts.test) & {*parts.train, *parts.valid}


def test_a_third_part_of_a_file_is_another_tenth(tmp_path):
    path = tmp_path / "mine.txt"
    texts = [f"Text {i}." for i in range(40)]
    path.write_text("\n\n".join(texts), "utf-8")
    whole = text.load(path)
    assert whole.valid == texts[::10] and len(whole.train) == 36
    parts = text.load(path, test_size=3)
    assert parts.valid == texts[::10] and parts.test == texts[5:30:10]
    assert set(parts.train) == set(texts) - set(texts[::5])
    assert whole.left_out == 0 and parts.left_out == 1


def test_a_third_part_of_real_stories_follows_the_second(
    tmp_path, monkeypatch
):
    lines = [f"Story {i}." for i in range(12)]
    for name in ("train", "valid"):
        whole = f"\n{resources.END}\n".join(lines)
        (tmp_path / f"{name}.txt").write_text(whole, "utf-8")
    monkeypatch.setenv("DBLM_TINYSTORIES", str(tmp_path))
    parts = text.load("tinystories", 5, 3, 4)
    assert parts.train == lines[:5] and parts.valid == lines[:3]
    assert parts.test == lines[3:7] and parts.left_out == 7 + 5
    with pytest.raises(ValueError, match="at least 0 text"):
        text.load("tinystories", test_size=-1)


def test_every_text_is_a_tale(corpus):
    assert all(tales.check(words).ok for words in corpus.train[:300])


@pytest.mark.parametrize("size", [0, -3])
def test_too_few_texts_are_refused(size):
    with pytest.raises(ValueError, match="at least 1 text"):
        text.load("tales", size=size)
    with pytest.raises(ValueError, match="at least 1 text"):
        text.load("tales", valid_size=size)


@pytest.mark.parametrize("size", [2.5, "10", True, None])
def test_a_size_is_a_whole_number(size):
    with pytest.raises(TypeError, match="whole number"):
        text.load("tales", size=size)


# --- a reader's own file ----------------------------------------------------


def write(tmp_path, content):
    path = tmp_path / "own.txt"
    path.write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    return path


STORIES = [f"Story {i} begins.\nAnd ends." for i in range(25)]


@pytest.mark.parametrize(
    "between",
    ["\n\n", "\n\n\n\n", "\n \t\n", "\r\n\r\n", "\n<|endoftext|>\n"],
)
def test_texts_are_told_apart(between, tmp_path):
    content = between.join(STORIES)
    if "\r" in between:
        content = content.replace("\r\n", "\n").replace("\n", "\r\n")
    corpus = text.load(write(tmp_path, content))
    assert corpus.name == "own.txt"
    # Every tenth text is held out.
    assert corpus.valid == STORIES[::10]
    assert corpus.train == [t for i, t in enumerate(STORIES) if i % 10]


def test_marked_texts_may_hold_blank_lines(tmp_path):
    """Real stories have paragraphs."""
    parts = [f"One {i}.\n\nTwo {i}." for i in range(4)]
    path = write(tmp_path, "<|endoftext|>".join(parts))
    corpus = text.load(str(path))
    assert [*corpus.valid, *corpus.train] == parts


def test_the_mark_that_windows_puts_in_front_is_no_text(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbf" + b"Caf\xc3\xa9.\n\nTwo.\n")
    assert text.load(path).valid == ["Café."]


def test_no_more_texts_than_asked_for(tmp_path):
    path = write(tmp_path, "\n\n".join(STORIES))
    corpus = text.load(path, size=4, valid_size=2)
    assert (len(corpus.train), len(corpus.valid)) == (4, 2)


def test_texts_that_are_left_out_are_counted(tmp_path, monkeypatch):
    path = write(tmp_path, "\n\n".join(STORIES))
    assert text.load(path).left_out == 0
    corpus = text.load(path, size=4, valid_size=2)
    assert corpus.left_out == 25 - 4 - 2
    assert text.load("tales", size=1, valid_size=1).left_out == 0
    monkeypatch.setenv("DBLM_TINYSTORIES", str(tmp_path))
    for part in ("train", "valid"):
        content = "<|endoftext|>".join(STORIES)
        (tmp_path / f"{part}.txt").write_text(content, "utf-8")
    assert text.load("tinystories", 20, 24).left_out == 5 + 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds 0 text"),
        (" \n\n \n", "holds 0 text"),
        ("<|endoftext|>", "holds 0 text"),
        ("A single story.\nIn two lines.\n", "holds 1 text"),
        ("Zwölf".encode("latin-1") + b"\n\nTwo.", "is not UTF-8"),
        ("One.\n\nTwo.".encode("utf-16"), "is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used(content, said, tmp_path):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=said) as caught:
        text.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["no-such-file.txt", "", "."])
def test_a_missing_file(name):
    with pytest.raises(ValueError, match="give 'tales', 'tinystories' or"):
        text.load(name)


# --- real stories -----------------------------------------------------------


@pytest.mark.skipif(
    not os.environ.get("DBLM_TINYSTORIES"),
    reason="no real stories here: DBLM_TINYSTORIES is not set",
)
def test_real_stories():
    corpus = text.load("tinystories", size=200, valid_size=50)
    assert (len(corpus.train), len(corpus.valid)) == (200, 50)
    assert not set(corpus.train) & set(corpus.valid)
    for story in corpus.train:
        assert story == story.strip() and "<|endoftext|>" not in story
    lengths = sorted(len(story) for story in corpus.train)
    assert 300 < lengths[100] < 3000  # stories, and not lines of stories


def test_the_named_folder_of_stories(tmp_path, monkeypatch):
    monkeypatch.setenv("DBLM_TINYSTORIES", str(tmp_path))
    (tmp_path / "train.txt").write_text("A.\n<|endoftext|>\nB.\n")
    with pytest.raises(resources.DataError, match=r"no .*valid\.txt"):
        text.load("tinystories")
    (tmp_path / "valid.txt").write_text("C.\n<|endoftext|>\n")
    corpus = text.load("tinystories")
    assert (corpus.train, corpus.valid) == (["A.", "B."], ["C."])


def test_no_network_is_said_at_once(monkeypatch):
    pytest.importorskip("datasets")
    from huggingface_hub import constants

    def unreachable(*arguments, **options):
        raise OSError("Network is unreachable")

    monkeypatch.delenv("DBLM_TINYSTORIES", raising=False)
    monkeypatch.setattr(socket, "create_connection", unreachable)
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        start = time.perf_counter()
        with pytest.raises(resources.DataError) as caught:
            text.load("tinystories")
        assert time.perf_counter() - start < 5
        assert "DBLM_TINYSTORIES" in str(caught.value)
        assert ("HF_HUB_OFFLINE" in str(caught.value)) == offline


def test_without_the_package_that_fetches(monkeypatch):
    monkeypatch.delenv("DBLM_TINYSTORIES", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(resources.DataError, match="pip install datasets"):
        text.load("tinystories")


# --- canvases ---------------------------------------------------------------


def test_a_canvas_goes_there_and_back(tokenizer, corpus):
    texts = corpus.train[:200]
    ids, mask = text.encode_batch(texts, tokenizer, 64)
    assert ids.shape == mask.shape == (200, 64)
    assert ids.dtype == torch.int64 and mask.dtype == torch.bool
    assert text.decode_batch(ids, tokenizer) == texts
    for row, real, words in zip(ids, mask, texts):
        own = tokenizer(words)["input_ids"]
        end = tokenizer.eos_token_id
        assert row.tolist() == own + [end] * (64 - len(own))
        # The text and its end count; the padding does not.
        assert real.tolist() == [i <= len(own) for i in range(64)]


def test_a_long_text_is_cut_off(tokenizer, corpus):
    words = corpus.train[0]
    own = tokenizer(words)["input_ids"]
    for seq_len in (1, 5, len(own)):
        ids, mask = text.encode_batch([words], tokenizer, seq_len)
        assert ids[0].tolist() == own[:seq_len] and mask.all()
        assert words.startswith(text.decode_batch(ids, tokenizer)[0])
    ids, mask = text.encode_batch([words], tokenizer, len(own) + 1)
    assert ids[0, -1] == tokenizer.eos_token_id and mask.all()


def test_texts_that_were_cut_are_counted(tokenizer):
    """One whose end finds no room is cut, too."""
    words = ["the night", "the night was here.", ""]
    own = [len(row) for row in tokenizer(words)["input_ids"]]
    for seq_len in range(1, max(own) + 2):
        ids, mask = text.encode_batch(words, tokenizer, seq_len)
        expected = sum(n >= seq_len for n in own)
        assert text.count_cut(ids, mask, tokenizer) == expected


def test_an_empty_text_is_an_end(tokenizer):
    ids, mask = text.encode_batch([""], tokenizer, 4)
    assert ids[0].tolist() == [tokenizer.eos_token_id] * 4
    assert mask[0].tolist() == [True, False, False, False]
    assert text.decode_batch(ids, tokenizer) == [""]


def test_reading_stops_at_the_first_end(tokenizer):
    end = tokenizer.eos_token_id
    night, dog = (tokenizer(w)["input_ids"] for w in ("the night", "dog"))
    row = [*night, end, end, *dog, end]
    ids = torch.tensor([row, [end, *row[1:]]])
    assert text.decode_batch(ids, tokenizer) == ["the night", ""]


def test_what_cannot_be_encoded(tokenizer):
    with pytest.raises(ValueError, match="no texts"):
        text.encode_batch([], tokenizer, 8)
    with pytest.raises(TypeError, match="write \\[text\\]"):
        text.encode_batch("a text", tokenizer, 8)
    for seq_len in (0, -1):
        with pytest.raises(ValueError, match="seq_len must be at least 1"):
            text.encode_batch(["a text"], tokenizer, seq_len)


def test_prompts_of_different_lengths(tokenizer):
    prompts = ["In the middle", "One", "In the middle of the night"]
    ids, given_ = text.pad_prompts(prompts, tokenizer)
    assert ids.shape == given_.shape
    for row, real, prompt in zip(ids, given_, prompts):
        own = tokenizer(prompt)["input_ids"]
        assert row[real].tolist() == own
        assert real.tolist() == sorted(real.tolist(), reverse=True)
    assert given_.all(dim=1).tolist() == [False, False, True]
    with pytest.raises(ValueError, match="no prompts"):
        text.pad_prompts([], tokenizer)


# --- words that are known ---------------------------------------------------


@pytest.mark.parametrize(
    "words",
    ["so as i was saying,", "generate me a story", "Once", '"Anna!"'],
)
def test_a_prompt_with_a_known_word(words, tokenizer):
    text.check_known(words, tokenizer)


@pytest.mark.parametrize("words", ["", " \n\t"])
def test_an_empty_prompt(words, tokenizer):
    with pytest.raises(ValueError, match="is empty"):
        text.check_known(words, tokenizer)


NO_TEXT = [(None, TypeError), (7, TypeError), (b"the", TypeError)]
BROKEN = [("the \ud800", ValueError), ("\udcff the", ValueError)]


@pytest.mark.parametrize(("words", "kind"), NO_TEXT + BROKEN)
def test_what_is_no_text_at_all(words, kind, tokenizer):
    said = "must be a string" if kind is TypeError else "not valid Unicode"
    with pytest.raises(kind, match=said):
        text.check_known(words, tokenizer)
    with pytest.raises(kind, match=said):
        text.encode_batch(["the", words], tokenizer, 8)
    with pytest.raises(kind, match=said):
        text.pad_prompts(["the", words], tokenizer)


def test_one_prompt_is_no_list(tokenizer):
    with pytest.raises(TypeError, match="write \\[prompt\\]"):
        text.pad_prompts("the night", tokenizer)


@pytest.mark.parametrize("words", ["xqzt", "...", "夜", "q", "\x00", "🌙 🌙"])
def test_a_prompt_without_a_known_word(words, tokenizer):
    with pytest.raises(ValueError, match="no word of"):
        text.check_known(words, tokenizer)


def test_every_opening_of_the_grammar_is_known(tokenizer):
    for opening in tales.OPENINGS:
        text.check_known(opening, tokenizer)
        text.check_known(opening.split()[0], tokenizer)


# --- the tokenizer of the book ----------------------------------------------

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
NASTY = st.text(
    "\x00\a\r\n\t \u00a0\u200d\ufeff\ufffd👩‍🚀é́'sa<|>", max_size=30
)


@functools.cache  # a fixture would be made again for every example
def the_tokenizer():
    return resources.load_tokenizer("tales")


@given(st.one_of(ANY, NASTY))
@example("")
@example("👩‍🚀 was sad.\x00\r\n\x1b[2J")
@example("Once<|endoftext|>upon <|endof text|> a time<|endoftext|>")
@example("  two  spaces ; a space before , a mark 's n't \u0130\u2028")
@example("e\u0301 is not \u00e9")
def test_any_text_goes_round(words):
    tokenizer = the_tokenizer()
    ids = tokenizer(words)["input_ids"]
    assert tokenizer.decode(ids) == words
    assert all(0 <= i < 1024 for i in ids)


def test_the_end_mark_is_one_token(tokenizer):
    """A text that holds it holds two texts; a canvas is read to there."""
    ids = tokenizer("night<|endoftext|>day")["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 1
    canvas, _ = text.encode_batch(["night<|endoftext|>day"], tokenizer, 8)
    assert text.decode_batch(canvas, tokenizer) == ["night"]


def test_the_vocabulary_is_about_a_thousand(tokenizer):
    assert 1000 <= len(tokenizer) <= 1050
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0
    assert tokenizer.convert_ids_to_tokens(0) == "<|endoftext|>"


def test_the_words_of_tales_are_nearly_all_one_token(tokenizer, corpus):
    """Then a canvas of 64 holds any tale, and rounding finds words."""
    pieces = {}
    for words in corpus.train:
        for token in tales.tokens(words):
            pieces.setdefault(token, None)
    for token in pieces:
        forms = [token] if token in ("'s", ".", ",", "!") else [" " + token]
        if not token.islower():
            forms.append(token)  # it may begin a tale
        pieces[token] = min(len(tokenizer.tokenize(form)) for form in forms)
    assert len(pieces) > 340
    long = {token for token, n in pieces.items() if n > 2}
    assert long <= {"counted"}, long  # of a rare deed
    assert sum(n == 1 for n in pieces.values()) >= 0.98 * len(pieces)


def test_every_tale_fits_the_canvas(tokenizer, corpus):
    lengths = [len(row) for row in tokenizer(corpus.train)["input_ids"]]
    assert 30 <= min(lengths) and max(lengths) <= 62
