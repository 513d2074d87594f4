"""Make everything in data/ again: text, tokenizer, checkpoints, manifest.

    python tools/make_checkpoints.py                   all of it, in order
    python tools/make_checkpoints.py tokenizer         one artefact
    python tools/make_checkpoints.py --out /tmp/data   somewhere else
    python tools/make_checkpoints.py ladder --jobs 8   runs side by side

Each artefact is made in a draft folder and put in place when it is whole.
`data/MANIFEST.json` records the command, the seconds it took, what was
measured, and the sha256 of every file.
"""

import argparse
import contextlib
import copy
import functools
import inspect
import json
import math
import multiprocessing
import operator
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dblm_lib import ladder, metrics, resources, tales, text, training

TRAIN_TALES = text.TRAIN_TALES
VALID_TALES = 1_000
SEQ_LEN = 64
# Long runs keep their checkpoints here and go on where they were stopped.
WORK = ROOT / "_build" / "training"


def make_tales(folder, source):
    """Held-out tales as a plain file, for readers who want to look."""
    texts = text.load("tales", size=1, valid_size=VALID_TALES).valid
    lines = "\n".join(texts) + "\n"
    (folder / "valid.txt").write_text(lines, "utf-8")
    counts = [len(tales.tokens(t)) for t in texts]
    return {
        "tales": len(texts),
        "word_types": len(tales.vocabulary()),
        "entropy_nats_per_tale": round(tales.entropy(), 4),
        "mean_words_and_marks": round(sum(counts) / len(counts), 2),
        "longest": max(counts),
    }


def make_tokenizer(folder, source):
    """A byte-level BPE in GPT-2's format, about a thousand tokens."""
    from tokenizers import ByteLevelBPETokenizer

    corpus = text.load("tales", size=20_000).train
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        corpus,
        vocab_size=1024,
        min_frequency=2,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    bpe.save(str(folder / "tokenizer.json"))
    lengths = [len(bpe.encode(t).ids) for t in corpus[:2000]]
    return {
        "vocab_size": bpe.get_vocab_size(),
        "mean_tokens_per_tale": round(sum(lengths) / len(lengths), 2),
        "longest_of_2000": max(lengths),
    }


def make_tales_gpt2(folder, source):
    """The embedded GPT-2, trained on Tiny Tales with the book's own loop."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = resources.load_tokenizer(source / "tokenizer")
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=256,
            n_embd=128,
            n_layer=4,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    ).to(resources.device())
    config = training.TrainConfig(
        steps=3000,
        batch_size=64,
        learning_rate=2e-3,
        warmup=100,
        ema=0.995,
        precision="auto",
        save_every=250,
    )
    corpus = text.load("tales", size=TRAIN_TALES, valid_size=VALID_TALES)
    ids, mask = text.encode_batch(corpus.train, tokenizer, SEQ_LEN)
    history = training.train(
        model,
        ids,
        mask,
        config,
        loss=training.next_token_loss,
        draw=None,
        folder=WORK / "tales-gpt2",
        resume=True,
    )
    model.cpu().save_pretrained(folder)
    shutil.copy(source / "tokenizer" / "tokenizer.json", folder)
    nats, error = metrics.nats_per_tale(model, tokenizer, corpus.valid)
    samples = metrics.sample_language_model(model, tokenizer, 500)
    share, broken = metrics.coherent_share(samples)
    entropy = tales.entropy()
    exact = -sum(tales.log_prob(tales.parse(t)) for t in corpus.valid)
    exact /= len(corpus.valid)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": config.steps,
        "tokens_seen": config.steps * config.batch_size * SEQ_LEN,
        "last_training_loss": round(history.loss[-1], 4),
        "entropy_nats_per_tale": round(entropy, 4),
        "valid_nats_per_tale": round(nats, 4),
        "valid_standard_error": round(error, 4),
        "exact_nats_of_these": round(exact, 4),
        "above_exact_percent": round(100 * (nats / exact - 1), 3),
        "above_entropy_percent": round(100 * (nats / entropy - 1), 3),
        "coherent_share_of_500": round(share, 4),
        "broken": dict(broken),
    }


def _side_by_side(work, tasks, jobs):
    """Do ``work(*task)`` for each task, in ``jobs`` processes."""
    if jobs == 1:
        return [work(*task) for task in tasks]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), _few_threads, (threads,)
    ) as pool:
        return list(pool.map(work, *zip(*tasks, strict=True)))


def _few_threads(count):
    import torch

    torch.set_num_threads(count)


@functools.cache
def _judge():
    """The judge, where it is fastest, and what it says of real tales."""
    judge = resources.load_backbone("tales-gpt2")
    judge.model.to(resources.device())
    return judge, metrics.judge(*judge, text.load("tales", size=1).valid)


def _written(model, texts=200, shown=20):
    """What a rung writes in 64 steps: plainly, and with a sharper sampler."""
    from dblm_lib import denoiser, evaluation

    judge, real = _judge()
    found = {}
    for way, sampler in (
        ("plain", denoiser.SAMPLER),
        ("sharp", ladder.sharp_sampler(model.config)),
    ):
        told = found[way] = None
        if sampler:
            told = evaluation.write(
                model,
                judge.tokenizer,
                texts,
                batch_size=texts,
                **denoiser.SAMPLER | sampler,
            )
            found[way] = evaluation.measured(judge, told, real=real)
            found[way]["first"] = told[:shown]
    return found


def _climb(index, seed, what="run", jobs=1):
    """A run of the ladder, or the levels that one will need."""

    def measure(model):
        return {"side_by_side": jobs} | _written(model)

    name, work = ladder.RUNGS[index].name, getattr(ladder, what)
    print(f"{name}, seed {seed}: {what}", flush=True)
    found = work(index, seed, WORK / "ladder", measure, progress=False)
    print(f"{name}, seed {seed}: {what} is done", flush=True)
    return found


def make_ladder(folder, source, jobs=1, seeds=(0, 1)):
    """Train every rung of the ladder; keep what it measured and wrote."""
    count = len(ladder.RUNGS)
    fits = [i for i, rung in enumerate(ladder.RUNGS) if rung.fitted]
    # What others wait for comes first; of the rest the slowest do.
    early = [(i, seed, "run", jobs) for i in range(fits[0]) for seed in seeds]
    early += [(i, seed, "levels_of", jobs) for i in fits[1:] for seed in seeds]
    late = [
        (i, seed, "run", jobs) for i in range(fits[0], count) for seed in seeds
    ]
    _side_by_side(_climb, early, jobs)
    _side_by_side(_climb, late[::-1], jobs)
    runs = [_climb(i, seed) for seed in seeds for i in range(count)]
    lines = ",\n".join(json.dumps(run) for run in runs)
    (folder / "runs.json").write_text(f"[\n{lines}\n]\n", "utf-8")
    return {
        "runs": len(runs),
        "steps": runs[0]["steps"],
        "tokens_seen": runs[0]["tokens_seen"],
        "device": " and ".join(sorted({run["device"] for run in runs})),
        "side_by_side": max(run["side_by_side"] for run in runs),
        "seconds_of_training": sum(run["seconds"] for run in runs),
    }


def make_autopsy(folder, source, seeds=(0, 1)):
    """Chapter 6's longer trainings: each cause alone, and all others fixed."""
    from dblm_lib import diagnostics

    found = diagnostics.long_runs(folder=WORK / "autopsy", seeds=seeds)
    (folder / "runs.json").write_text(json.dumps(found) + "\n", "utf-8")
    return {
        "runs": sum(map(len, found.values())),
        "steps": diagnostics.STEPS,
        "seeds": len(seeds),
        "seconds_of_training": round(
            sum(run["seconds"] for runs in found.values() for run in runs)
        ),
    }


# Of the models below; chosen by coherence on samples of other seeds.
TEACHER_SAMPLER = dict(ladder.SHARP)
# Steps of its training after which the teacher is measured, and at its end.
COURSE_MARKS = (250, 500, 1000, 1500, 2000, 3000, 4000, 5000, 6000, 8000)
STUDENT_SAMPLER = {
    "step": "deterministic",
    "stagger": 1.5,
    "power": 0.8,
    "temperature": 0.8,
    "likelihood_weight": 0.25,
}


def _trained(model, train, folder, loss=None, draw="model", **changes):
    """Train to the end, or go on where it was stopped."""
    import torch

    config = ladder.recipe(ladder.TOP, save_every=250, **changes)
    everywhere = torch.ones_like(train, dtype=torch.bool)
    history = training.train(
        model, train, everywhere, config, loss, draw, folder, resume=True
    )
    return history, config


def train_teacher(work, watch=None):
    """The top of the ladder, trained to the budget; resumes by itself.

    ``watch(model, done)`` is asked for the loss of each phase, given the
    steps already done; `training.loss_for` if left out.

    First a short run over a wide range of noise, to whose loss the range is
    fitted. Then the model itself, in two phases: at first it only learns to
    look at clean neighbours, then all together.
    """
    tokenizer = resources.load_tokenizer()
    train, valid = ladder.canvases(tokenizer, TRAIN_TALES)
    file = work / "levels.json"
    if not file.is_file():
        model = ladder.build(ladder.TOP, ladder.FIT_LEVELS[4:], seed=0)
        model.config.clean_rate = 0.5
        model = model.to(resources.device())
        _trained(model, train, work / "fit", steps=300)
        report = ladder.level_report(model, valid[:256], ladder.FIT_LEVELS)
        levels = ladder.fit_levels(report, trim=0.005)
        file.write_text(json.dumps(levels), "utf-8")
    model = ladder.build(ladder.TOP, json.loads(file.read_text("utf-8")))
    model = model.to(resources.device())
    phases = (
        ("neighbours", 1000, ladder.only_neighbours),
        ("together", 8500, contextlib.nullcontext),
    )
    watch = watch or (lambda model, done: training.loss_for(model))
    runs, done = [], 0
    for name, steps, mode in phases:
        ema = min(0.998, 1 - 10 / steps)
        loss = watch(model, done)
        with mode(model.config):
            run = _trained(
                model, train, work / name, loss, steps=steps, ema=ema
            )
        runs.append(run)
        done += steps
    return model.cpu(), runs


def train_student(work, teacher):
    """The teacher once more, as a student of its own; resumes by itself."""
    from dblm_lib import distillation

    teacher = teacher.to(resources.device())
    train, _ = ladder.canvases(resources.load_tokenizer(), TRAIN_TALES)
    model = copy.deepcopy(teacher)
    run = _trained(
        model,
        train,
        work,
        loss=distillation.distillation_loss,
        draw=distillation.Lessons(teacher),
        steps=1500,
        batch_size=16,
        learning_rate=2e-3,
        final_fraction=0.05,
    )
    return model.cpu(), [run]


def _shipped(model, runs, folder, source):
    """Write a model in half precision; measure what was written."""
    from dblm_lib import denoiser, evaluation

    tokenizer = resources.load_tokenizer(source / "tokenizer")
    model.half().save_pretrained(folder)
    shutil.copy(source / "tokenizer" / "tokenizer.json", folder)
    model = resources.load_weights(denoiser.DBLM, folder)
    seen = [c.steps * c.batch_size * SEQ_LEN for _, c in runs]
    # Also right where the training was resumed.
    speeds = [history.tokens_per_second for history, _ in runs]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": sum(config.steps for _, config in runs),
        "tokens_seen": sum(seen),
        "seconds_of_training": round(sum(map(operator.truediv, seen, speeds))),
        "last_training_loss": round(runs[-1][0].loss[-1], 4),
        "evaluation": evaluation.evaluate(model, tokenizer, progress=True),
    }


def make_teacher(folder, source):
    """The repaired denoiser: the top of the ladder, trained to the budget."""
    model, runs = train_teacher(WORK / "tales-dblm-teacher")
    model.config.sampler = TEACHER_SAMPLER
    return _shipped(model, runs, folder, source)


def make_student(folder, source):
    """The repaired denoiser, taught by itself to take few steps."""
    from dblm_lib import denoiser

    place = source / "checkpoints" / "tales-dblm-teacher"
    teacher = resources.load_weights(denoiser.DBLM, place)
    teacher.config.sampler = STUDENT_SAMPLER
    model, runs = train_student(WORK / "tales-dblm", teacher)
    return _shipped(model, runs, folder, source)


def make_course(folder, source, marks=COURSE_MARKS, texts=100):
    """The teacher's training once more, measured on its way.

    At each mark a mean of the weights of the last hundred steps or so writes
    tales, once with the plain sampler and once with the teacher's own. Begins
    anew each time, since what was measured before a stop is lost.
    """
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    from dblm_lib import denoiser, evaluation

    judge = resources.load_backbone("tales-gpt2")
    _, valid = ladder.canvases(judge.tokenizer, TRAIN_TALES)
    real = metrics.judge(*judge, text.load("tales", size=1).valid)
    course = []

    def measure(model, done):
        for way, sampler in (
            ("plain", denoiser.SAMPLER),
            ("own", TEACHER_SAMPLER),
        ):
            told = evaluation.write(model, judge.tokenizer, texts, **sampler)
            found = metrics.report(
                told, judge, evaluation.training_tales(), real
            )
            course.append({"step": done, "way": way} | found)
            print(done, way, found["coherent"], found["broken"], flush=True)
        course[-1]["by_level"] = ladder.level_report(
            model, valid[:256], ladder.FIT_LEVELS
        )

    def watch(model, done):
        loss = training.loss_for(model)
        mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))

        def watched(network, batch):
            if watched.done in marks:
                measure(mean.module.eval(), watched.done)
            watched.done += 1
            mean.update_parameters(model)
            return loss(network, batch)

        watched.done = done
        return watched

    work = WORK / "course"
    shutil.rmtree(work, ignore_errors=True)
    model, runs = train_teacher(work, watch)
    measure(model, sum(config.steps for _, config in runs))
    lines = ",\n".join(json.dumps(row) for row in course)
    (folder / "course.json").write_text(f"[\n{lines}\n]\n", "utf-8")
    return {
        "points": len(course),
        "texts": texts,
        "steps": [config.steps for _, config in runs],
    }


def _sample(way, num_steps, settings, place, texts):
    """One point of the samplers' grid, unless it is there already."""
    from dblm_lib import denoiser, evaluation

    file = WORK / "samplers" / f"{way}-{num_steps}.json"
    if not file.is_file():
        model = resources.load_weights(denoiser.DBLM, place)
        model.to(resources.device())
        judge, real = _judge()
        start = time.perf_counter()
        told = evaluation.write(
            model,
            judge.tokenizer,
            texts,
            num_steps,
            batch_size=250,
            **settings,
        )
        row = {"way": way, "num_steps": num_steps} | settings
        row["seconds"] = round(time.perf_counter() - start, 1)
        row["device"] = resources.device_name()
        row |= evaluation.measured(judge, told, real=real)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".tmp")
        draft.write_text(json.dumps(row), "utf-8")
        os.replace(draft, file)
        print(file.stem, row["coherent"], flush=True)
    return json.loads(file.read_text("utf-8"))


def _ways(teacher, student):
    """Samplers, from the plain one to a model's own, a setting at a time."""
    from dblm_lib import denoiser

    ways, settings = {"plain": denoiser.SAMPLER}, dict(denoiser.SAMPLER)
    for name, value in teacher.sampler.items():
        settings = settings | {name: value}
        ways[f"+ {name} {value}"] = settings
    ways["deterministic"] = denoiser.SAMPLER | {"step": "deterministic"}
    ways["as the student"] = denoiser.SAMPLER | student.sampler
    ways["student"] = ways["as the student"]
    return ways


def make_samplers(folder, source, jobs=1, texts=500):
    """Ways to take the steps, and how many; resumes by itself.

    All of tales-dblm-teacher but the last, which is that of tales-dblm.
    Each point of the grid is kept as soon as it is measured.
    """
    from dblm_lib import denoiser

    places = [
        source / "checkpoints" / name
        for name in ("tales-dblm-teacher", "tales-dblm")
    ]
    ways = _ways(*map(denoiser.DBLMConfig.from_pretrained, places))
    tasks = [
        (way, n, settings, places[way == "student"], texts)
        for n in (4, 8, 16, 32, 64, 128, 256)
        for way, settings in ways.items()
    ]
    _side_by_side(_sample, tasks[::-1], jobs)
    grid = [_sample(*task) for task in tasks]
    lines = ",\n".join(json.dumps(row) for row in grid)
    (folder / "grid.json").write_text(f"[\n{lines}\n]\n", "utf-8")
    return {
        "points": len(grid),
        "texts": texts,
        "device": " and ".join(sorted({row["device"] for row in grid})),
        "seconds_of_sampling": round(sum(row["seconds"] for row in grid)),
    }


MAKERS = {
    "tales": ("tales", make_tales),
    "tokenizer": ("tokenizer", make_tokenizer),
    "tales-gpt2": ("checkpoints/tales-gpt2", make_tales_gpt2),
    "autopsy": ("autopsy", make_autopsy),
    "ladder": ("ladder", make_ladder),
    "tales-dblm-teacher": ("checkpoints/tales-dblm-teacher", make_teacher),
    "course": ("course", make_course),
    "tales-dblm": ("checkpoints/tales-dblm", make_student),
    "samplers": ("samplers", make_samplers),
}


def write_manifest(out, updates):
    """Record artefacts and the digest of every file; atomically."""
    path = out / "MANIFEST.json"
    artifacts = {}
    if path.is_file():
        artifacts = json.loads(path.read_text("utf-8"))["artifacts"]
    artifacts |= updates
    files = {
        file.relative_to(out).as_posix(): {
            "sha256": resources.sha256(file),
            "bytes": file.stat().st_size,
        }
        for file in sorted(out.rglob("*"))
        if file.is_file() and file != path and "draft" not in file.parts
    }
    draft = path.with_suffix(".tmp")
    content = {"artifacts": artifacts, "files": files}
    draft.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    os.replace(draft, path)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="what to make: " + ", ".join(MAKERS) + " (default: all)",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "data", help="the data folder"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="processes side by side, for what consists of many runs; one "
        "GPU has room for some (default: 1)",
    )
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in MAKERS:
            parser.error(f"unknown name {name!r}; known: {', '.join(MAKERS)}")
    if options.jobs < 1:
        parser.error(f"--jobs must be 1 or more; got {options.jobs}")
    out = options.out
    for name in options.names or MAKERS:
        place, make = MAKERS[name]
        print(f"{name}: {make.__doc__}", flush=True)
        draft = out / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        start = time.perf_counter()
        takes = inspect.signature(make).parameters
        extra = {"jobs": options.jobs} if "jobs" in takes else {}
        measured = make(draft, out, **extra)
        seconds = math.ceil(time.perf_counter() - start)
        # Runs that were kept from an earlier call took their time, too.
        kept = ("seconds_of_training", "seconds_of_sampling")
        seconds = max(seconds, *(measured.get(name, 0) for name in kept))
        shutil.rmtree(WORK / name, ignore_errors=True)
        final = out / place
        shutil.rmtree(final, ignore_errors=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft, final)
        command = f"python tools/make_checkpoints.py {name}"
        record = {"command": command, "seconds": seconds, "metrics": measured}
        write_manifest(out, {name: record})
        print(json.dumps(record, indent=1), flush=True)


if __name__ == "__main__":
    main()
