"""Prompts and canvases: what is given, what is refused, how long a text is.

With the book's own model where there is one: `tests/test_decoding.py` has
the sampler's tests.
"""

from functools import lru_cache
from types import SimpleNamespace

import numpy
import pytest
import torch

from dblm_lib import decoding, denoiser, prompts, resources

END = 0
MASK_TYPES = (torch.bool, torch.int64, torch.uint8, torch.float32)


@lru_cache
def small_model(**options):
    """Return a random denoiser of 17 tokens and 32 positions."""
    torch.manual_seed(0)
    fields = {
        "vocab_size": 17,
        "n_positions": 32,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "bos_token_id": END,
        "eos_token_id": END,
        "normalise_embeddings": True,
        **options,
    }
    return denoiser.DBLM(denoiser.DBLMConfig(**fields)).eval()


def write(input_ids=None, model=None, **options):
    """Generate with few steps; the same seed each time."""
    model = model or small_model()
    options.setdefault("generator", torch.Generator().manual_seed(0))
    return model.generate(input_ids, **{"num_steps": 2, **options})


@lru_cache
def own(name="tales-dblm"):
    """Return the book's model and its tokenizer."""
    try:
        return denoiser.load(name), resources.load_tokenizer(name)
    except resources.DataError as error:
        pytest.skip(f"no data yet: {error}")


# --- the canvas belongs to the model ----------------------------------------


@pytest.mark.parametrize(
    "options, length",
    [
        ({"seq_len": 5}, 5),
        ({"seq_len": 32}, 32),
        ({}, 32),
        ({"shift": True}, 31),
        ({"n_positions": 200}, 64),
        ({"n_positions": 200, "seq_len": 128}, 128),
    ],
)
def test_the_canvas_is_the_one_of_the_model(options, length):
    """The length it was trained on; else 64, or all positions it knows."""
    model = small_model(**options)
    assert decoding.canvas_of(model) == model.canvas() == length
    assert write(model=model).shape == (1, length)
    assert write(model=model, max_length=3).shape == (1, 3)
    tokenizer = SimpleNamespace(eos_token_id=END, decode=str)
    found = decoding.generate(model, tokenizer, num_steps=1)
    assert found.ids.shape == (1, length)


def test_a_model_without_a_configuration_has_a_canvas():
    assert decoding.canvas_of(SimpleNamespace()) == 64
    assert decoding.canvas_of(SimpleNamespace(config=None)) == 64


def test_the_canvas_is_saved_with_the_model(tmp_path):
    small_model(seq_len=7).save_pretrained(tmp_path)
    assert denoiser.load(tmp_path).canvas() == 7


@pytest.mark.parametrize(
    "options, words",
    [
        ({"seq_len": 33}, "knows 32 positions; seq_len.*got 33"),
        ({"seq_len": 32, "shift": True}, "knows 31 positions; seq_len"),
        ({"seq_len": 0}, "seq_len must be a whole number above 0; got 0"),
        ({"seq_len": True}, "seq_len must be a whole number.*True"),
        ({"seq_len": 8.0}, "seq_len must be a whole number.*8.0"),
    ],
)
def test_a_canvas_that_does_not_fit_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        small_model(**options)


def test_a_prompt_longer_than_the_canvas_is_refused():
    """With what can be done: there may be room for a longer canvas."""
    model, prompt = small_model(seq_len=5), torch.ones(6, dtype=torch.long)
    words = "6 tokens, the canvas only 5: shorten it or raise max_length"
    with pytest.raises(ValueError, match=words):
        write(prompt, model)
    assert write(prompt, model, max_length=8).shape == (1, 8)
    long = torch.ones(33, dtype=torch.long)
    with pytest.raises(ValueError, match="only 32: shorten it$"):
        write(long)
    with pytest.raises(ValueError, match="knows 32 positions: max_length"):
        write(long, max_length=40)


# --- masks of any type ------------------------------------------------------


@pytest.mark.parametrize("name", ["keep", "attention_mask"])
@pytest.mark.parametrize("dtype", MASK_TYPES)
def test_masks_of_any_type_mean_the_same(name, dtype):
    """As an index a mask of whole numbers would pick rows 0 and 1."""
    ids = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    expected = write(ids, keep=mask.bool(), max_length=6)
    got = write(ids, max_length=6, **{name: mask.to(dtype)})
    assert torch.equal(got, expected)
    assert got[0, :3].tolist() == [3, 1, 4] and got[1, :2].tolist() == [5, 9]
    with pytest.raises(ValueError, match=f"{name} must hold 0 and 1"):
        write(ids, **{name: 2 * mask})


def test_lists_and_arrays_are_masks_too():
    ids, mask = [[3, 1, 4], [5, 9, 2]], [[1, 0, 1], [1, 1, 1]]
    expected = write(torch.tensor(ids), keep=torch.tensor(mask).bool())
    assert torch.equal(write(ids, keep=mask), expected)
    arrays = numpy.array(ids), numpy.array(mask, dtype=numpy.uint8)
    assert torch.equal(write(arrays[0], keep=arrays[1]), expected)


def test_prompts_padded_the_usual_way():
    """By transformers: on the right, on the left, with the end token."""
    model, tokenizer = own()
    texts = ["One sunny morning,", "Once upon a time, there was a little"]
    options = {"num_steps": 2, "max_length": 32}

    def drawn(**given):
        generator = torch.Generator().manual_seed(3)
        return model.generate(**given, generator=generator, **options)

    right = tokenizer(texts, padding=True, return_tensors="pt")
    tokenizer.padding_side = "left"
    left = tokenizer(texts, padding=True, return_tensors="pt")
    tokenizer.padding_side = "right"
    assert right["input_ids"][0, -1] == left["input_ids"][0, 0] == END
    rows = drawn(**right)
    assert torch.equal(drawn(**left), rows)
    by_name = decoding.generate(model, tokenizer, texts, seed=3, **options)
    assert torch.equal(by_name.ids, rows)
    for row, words in zip(rows, texts, strict=True):
        assert tokenizer.decode(row).startswith(words)
    for side in (left, right):
        with pytest.raises(ValueError, match="attention_mask"):
            drawn(input_ids=side["input_ids"])


@pytest.mark.parametrize(
    "given, words",
    [
        ({"input_ids": [3, END]}, "end-of-text token 0.*attention_mask"),
        ({"input_ids": [END, 3]}, "end-of-text token 0.*attention_mask"),
        (
            {"input_ids": [END, 3], "keep": [1, 1]},
            "goes on behind the end-of-text token 0",
        ),
        (
            {"input_ids": [[3, 4], [3, 4]], "attention_mask": [[0, 0]] * 2},
            "row 0 of attention_mask holds no token",
        ),
        (
            {"input_ids": [3, 4, 5], "attention_mask": [1, 0, 1]},
            "gap inside a prompt.*keep",
        ),
        (
            {"input_ids": [3], "attention_mask": [1], "keep": [1]},
            "leave one out",
        ),
        ({"keep": [1]}, "belong to input_ids"),
        ({"input_ids": [[1, 2], [3]]}, "rows of one length"),
        ({"input_ids": ["a"]}, "input_ids must have shape"),
        ({"input_ids": [True, False]}, "must be token ids"),
    ],
)
def test_prompts_that_mean_nothing_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        write(**given)


def test_given_texts_may_end():
    """To fill a gap: what stands behind the end may be given as well."""
    ids, keep = [3, 4, 5, END, END], [1, 0, 1, 1, 1]
    (row,) = write(ids, keep=keep, max_length=6).tolist()
    assert [row[i] for i in (0, 2, 3, 4)] == [3, 5, END, END]


# --- words ------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        "One sunny morning, ",
        " One sunny morning,",
        "One sunny morning,\n",
        "\t\r\nOne sunny morning, \n",
        "One sunny morning,\u00a0",
    ],
)
def test_white_space_at_the_ends_changes_nothing(prompt):
    """A shell or an editor leaves it behind; no text was trained with it."""
    model, tokenizer = own()
    options = {"num_steps": 2, "max_length": 16}
    expected = decoding.generate(
        model, tokenizer, "One sunny morning,", **options
    )
    got = decoding.generate(model, tokenizer, [prompt], **options)
    assert torch.equal(got.ids, expected.ids)


@pytest.mark.parametrize(
    "prompt",
    [
        "<|endoftext|>One sunny morning,",
        "One sunny morning,<|endoftext|> Tom",
        "One sunny morning,<|endoftext|>",
        ["One sunny morning,", "One<|endoftext|>sunny morning"],
    ],
)
def test_the_end_mark_is_no_part_of_a_prompt(prompt):
    with pytest.raises(ValueError, match=r"end-of-text mark <\|endoftext\|>"):
        decoding.generate(*own(), prompt, num_steps=1, max_length=16)


@pytest.mark.parametrize("prompt", [5, [None], ["a", b"b"]])
def test_a_prompt_is_a_text(prompt):
    with pytest.raises(TypeError):
        prompts.encode(prompt, own()[1])


# --- options ----------------------------------------------------------------


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"max_length": True}, ValueError, "max_length.*True"),
        ({"max_length": 4.0}, ValueError, "max_length.*4.0"),
        ({"num_return_sequences": True}, ValueError, "num_return.*True"),
        ({"num_return_sequences": 1.5}, ValueError, "num_return.*1.5"),
        ({"num_steps": True}, TypeError, "num_steps.*True"),
        ({"num_steps": 2.5}, TypeError, "num_steps.*2.5"),
        ({"num_steps": 0}, ValueError, "num_steps.*0"),
        ({"step": 1}, ValueError, "step is one of"),
        ({"stagger": "2"}, ValueError, "stagger must be 0 or more; got '2'"),
        ({"stagger": True}, ValueError, "stagger must be 0 or more"),
        ({"power": True}, ValueError, "power must be positive"),
        ({"power": "1"}, ValueError, "power must be positive"),
        ({"temperature": "1"}, ValueError, "temperature must be positive"),
        ({"likelihood_weight": "1"}, ValueError, "likelihood_weight must not"),
        ({"snap": "no"}, TypeError, "snap is True or False"),
        ({"metric": "manhattan"}, ValueError, "unknown metric"),
        ({"generator": 5}, TypeError, "generator must be a torch.Generator"),
    ],
)
def test_options_are_checked_before_the_network_is_asked(
    options, error, words
):
    model = small_model()
    hook = model.register_forward_pre_hook(lambda *_: pytest.fail("asked"))
    try:
        with pytest.raises(error, match=words):
            write(model=model, **{"max_length": 4, **options})
    finally:
        hook.remove()
