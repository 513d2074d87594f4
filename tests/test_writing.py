"""Writing with masks: prompts, samplers, and what is seen of the way."""

import re

import pytest
import torch
from small_book import filler

from dblm_lib import (
    decoding,
    masked,
    resources,
    text,
    unmasking,
    widgets,
    writing,
)

PROMPTS = ["Once upon a time,", "Anna", "In the middle of the night..."]


@pytest.fixture(scope="module")
def tokenizer():
    return resources.load_tokenizer("tales")


@pytest.fixture(scope="module")
def model(tokenizer):
    return filler(tokenizer, seq_len=24)


def seed(number=0):
    return torch.Generator().manual_seed(number)


# --- what is written --------------------------------------------------------


def test_without_a_prompt_it_is_unmasking_by_the_usual_sampler(
    model, tokenizer
):
    """On canvases as long as in training; texts end where the model did."""
    made = writing.generate(model, tokenizer, seed=3, num_return_sequences=3)
    canvas = torch.full((3, 24), model.config.mask_id)
    course = unmasking.unmask(
        model,
        canvas,
        model.config.mask_id,
        num_steps=64,
        generator=seed(3),
        **writing.SAMPLER,
    )
    assert torch.equal(made.ids, course.ids)
    assert torch.equal(made.course.revealed, course.revealed)
    assert made.texts == text.decode_batch(made.ids, tokenizer)
    other = writing.generate(model, tokenizer, seed=4, num_return_sequences=3)
    assert len({*made.texts, *other.texts}) == 6
    assert not made.course.canvases


@pytest.mark.parametrize("order", sorted(unmasking.ORDERS))
def test_prompts_stay_and_all_else_is_written(order, model, tokenizer):
    made = writing.generate(
        model,
        tokenizer,
        PROMPTS,
        num_return_sequences=2,
        order=order,
        num_steps=24 if order == "first-hitting" else 6,
    )
    assert len(made.texts) == 6
    assert all(
        map(str.startswith, made.texts, [p for p in PROMPTS for _ in "ab"])
    )
    assert int(made.ids.max()) < model.config.vocab_size
    ids = tokenizer(PROMPTS[0])["input_ids"]
    assert made.ids[0, : len(ids)].tolist() == ids
    given = made.course.revealed[0] == 0
    assert given.tolist() == [k < len(ids) for k in range(24)]
    most = 24 if order == "first-hitting" else 6
    assert int(made.course.nfe.max()) <= most


def test_gaps_are_filled_and_what_is_around_them_stays(model):
    ids = torch.arange(100, 120)
    keep = torch.ones(20)
    keep[5:9] = keep[12] = 0
    course = writing.generate_ids(model, ids, keep, max_length=20)
    kept = keep.bool()
    assert torch.equal(course.ids[0, kept], ids[kept])
    assert torch.equal(course.revealed[0] > 0, ~kept)


def test_padding_on_the_left_is_moved_as_in_decoding(model):
    ids = torch.tensor([[0, 0, 7, 8], [5, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    course = writing.generate_ids(model, ids, attention_mask=mask)
    assert course.ids.shape == (2, 24)
    assert course.ids[0, :2].tolist() == [7, 8]
    assert course.revealed[:, :5].bool().long().tolist() == [
        [0, 0, 1, 1, 1],
        [0, 0, 0, 0, 1],
    ]


def test_a_model_in_training_writes_without_dropout(model, tokenizer):
    model.train()
    made = writing.generate(model, tokenizer, num_steps=4)
    assert not model.training
    again = writing.generate(model, tokenizer, num_steps=4)
    assert made.texts == again.texts


# --- samplers ---------------------------------------------------------------


def test_the_sampler_is_the_calls_or_the_models_or_the_books(
    tokenizer, tmp_path
):
    """With an order what another would need is left aside."""
    model = filler(tokenizer)
    assert writing.sampler_of(model) == writing.SAMPLER
    assert writing.sampler_of(model, {"temperature": 0.5}) == {
        **writing.SAMPLER,
        "temperature": 0.5,
    }
    own = {"order": "threshold", "tau": 0.8}
    model.config.sampler = own
    model.save_pretrained(tmp_path)
    model = masked.load(tmp_path)
    assert writing.sampler_of(model) == own
    assert writing.sampler_of(model, {"tau": 0.7}) == own | {"tau": 0.7}
    asked = {"order": "entropy"}
    assert writing.sampler_of(model, asked) == asked
    model.config.sampler = "entropy"
    with pytest.raises(TypeError, match="dictionary of options; got 'entr"):
        writing.sampler_of(model)
    model.config.sampler = {"temperature": 0.9}
    assert writing.sampler_of(model) == {
        **writing.SAMPLER,
        "temperature": 0.9,
    }


def test_another_noise_is_one_more_sampler(tokenizer, monkeypatch):
    model, seen = filler(tokenizer), []
    monkeypatch.setattr(model.config, "noise", "salt")
    with pytest.raises(ValueError, match="for the noise 'salt'; there is"):
        writing.generate(model, tokenizer)

    def write(denoise, canvas, given, model, **options):
        seen.append((bool(given.any()), options))
        return unmasking.Course(canvas + 5)

    monkeypatch.setitem(writing.SAMPLERS, "salt", {"grains": 3})
    monkeypatch.setitem(writing._WRITERS, "salt", write)
    made = writing.generate(model, tokenizer, num_steps=9, seed=1)
    assert made.ids.unique().tolist() == [5]
    prompted, options = seen[0]
    assert not prompted and options.pop("generator").initial_seed() == 1
    assert options == {"num_steps": 9, "record": False, "grains": 3}


@pytest.mark.parametrize("noise", ["uniform", "hybrid"])
def test_models_of_other_noises_write_around_what_is_given(noise, tokenizer):
    model = filler(tokenizer, noise=noise, conditioning="time")
    times, forward = [], model.forward

    def watched(ids, *args, t=None, **kwargs):
        times.append(t)
        return forward(ids, *args, t=t, **kwargs)

    model.forward = watched
    half = {"order": "left-to-right", "edit": 1e-9, "filling": 0.5}
    made = writing.generate(
        model,
        tokenizer,
        PROMPTS,
        num_steps=5,
        record=True,
        **(half if noise == "hybrid" else {}),
    )
    assert all(map(str.startswith, made.texts, PROMPTS))
    assert int(made.ids.max()) < model.config.vocab_size
    given = made.course.revealed[0] == 0
    count = len(tokenizer(PROMPTS[0])["input_ids"])
    assert bool(given[:count].all())
    least = {"uniform": 0.2, "hybrid": writing.DOUBT}[noise]
    assert min(float(t.min()) for t in times) == pytest.approx(least)
    if noise == "hybrid":
        assert made.course.changed.any()
        frozen = writing.generate(
            model, tokenizer, PROMPTS, num_steps=5, edit=2.0
        )
        assert not frozen.course.changed.any()


def test_first_hitting_needs_a_step_a_token(model, tokenizer):
    for steps in (24, 64, None):
        made = writing.generate(
            model, tokenizer, order="first-hitting", num_steps=steps
        )
        assert made.course.nfe.tolist() == [24]
    with pytest.raises(ValueError, match="first-hitting reveals one token"):
        writing.generate(model, tokenizer, order="first-hitting", num_steps=23)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"order": "entrpy"}, ValueError, "did you mean 'entropy'"),
        ({"order": "entropy", "tau": 0.5}, TypeError, "no option 'tau'"),
        ({"stagger": 2.0}, ValueError, "belong to the ancestral order"),
        ({"temperature": -1}, ValueError, "temperature must be 0 or"),
        ({"num_steps": 0}, ValueError, "num_steps"),
        ({"max_length": 96}, ValueError, "knows 95 positions"),
        ({"max_length": 2.5}, ValueError, "max_length must be a whole"),
        ({"num_return_sequences": 0}, ValueError, "num_return_sequences"),
        ({"prompt": ""}, ValueError, "empty"),
        ({"prompt": "the night " * 20}, ValueError, "the canvas only 24"),
        ({"prompt": "the end<|endoftext|>"}, ValueError, "end-of-text mark"),
        ({"prompt": [3]}, TypeError, "a prompt is a text"),
        ({"keep": [1, 0]}, ValueError, "belong to input_ids"),
    ],
)
def test_what_means_nothing_is_refused(
    options, error, words, model, tokenizer
):
    with pytest.raises(error, match=re.escape(words)):
        writing.generate(model, tokenizer, **options)


def test_which_models_it_is_for(model):
    assert writing.fills(model)
    assert not writing.fills(torch.nn.Linear(2, 2))
    assert decoding.longest_of(model) == 95


# --- what is seen of it -----------------------------------------------------


def test_words_of_a_canvas_up_to_its_end(model, tokenizer):
    """Letters that need several tokens are whole between two masks."""
    mask_id, end = model.config.mask_id, tokenizer.eos_token_id
    ids = tokenizer("Anna wore a café hat")["input_ids"]
    row = torch.tensor([mask_id, *ids, mask_id, mask_id, end, *ids, mask_id])
    shown = writing.words(row, tokenizer, mask_id)
    assert shown == " _Anna wore a café hat _ _"
    assert writing.words(row[-1:], tokenizer, mask_id, "#") == "#"
    assert writing.words(torch.tensor(ids), tokenizer, mask_id) == (
        "Anna wore a café hat"
    )


def test_frames_are_the_way_from_masks_to_the_text(model, tokenizer):
    """What is written stays, and the last frame is the text."""
    made = writing.generate(
        model, tokenizer, "Anna", num_steps=6, record=True, order="random"
    )
    mask_id = model.config.mask_id
    found = writing.theatre_panel(made.course, tokenizer, mask_id)
    rows, sure = found["frames"], found["confidence"]
    assert len(rows) == len(sure) == 7 and sure.shape == (7, 24)
    masks = [row.count(writing.BLANK) for row in rows]
    assert masks[0] == 24 - len(tokenizer("Anna")["input_ids"])
    assert masks[-1] == 0 and masks == sorted(masks, reverse=True)
    for i, row in enumerate(rows):
        for k, token in enumerate(row):
            blank = token == writing.BLANK
            assert blank == (int(made.course.revealed[0, k]) > i)
            assert blank or token == rows[-1][k] and sure[i, k] == 1
    assert bool((sure[0, 5:] < 1).all()) and bool((sure[-1] == 1).all())
    ids = made.ids[0].tolist()
    assert rows[-1] == [tokenizer.decode([i]) for i in ids]
    longer = writing.theatre_panel(made.course, tokenizer, mask_id, count=9)
    assert longer["frames"] == rows + rows[-1:] * 2
    assert longer["confidence"].shape == (9, 24)
    with pytest.raises(ValueError, match="has 7 frames; got count 6"):
        writing.theatre_panel(made.course, tokenizer, mask_id, count=6)
    bare = writing.generate(model, tokenizer, num_steps=2)
    with pytest.raises(ValueError, match="record=True"):
        writing.theatre_panel(bare.course, tokenizer, mask_id)


def test_frames_are_what_the_theatre_plays(model, tokenizer):
    made = writing.generate(model, tokenizer, num_steps=4, record=True)
    panel = writing.theatre_panel(made.course, tokenizer, model.config.mask_id)
    figure = widgets.theatre(
        [{"label": "a", "panels": [panel | {"verdict": "none"}]}],
        alt="A text.",
        panel_labels=["masks"],
        blank=writing.BLANK,
        name="filling",
    )
    assert figure._repr_html_().count("dblm-blank") >= 24
