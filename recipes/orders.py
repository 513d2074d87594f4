"""What masks can do: each order of writing in more and fewer steps.

The masked denoiser fills 300 canvases a point, and its T-step bound is
measured beside that of the exact denoiser. A quarter of an hour on one
processor core. Each point is kept as soon as it is measured; resumes.
"""

import math
import time

import torch

from dblm_lib import (
    ablation,
    conditionals,
    evaluation,
    likelihood,
    masked,
    resources,
    text,
    unmasking,
)

from . import common

WRITER, ORACLE = "tales-mdlm", "oracle"
STEPS = (64, 32, 16, 8)
# Of the ancestral order, whose loss is the T-step bound.
MORE_STEPS = (1, 2, 4, 128, 256)
QUOTAS = (
    "ancestral",
    "random",
    "left-to-right",
    "entropy",
    "confidence",
    "margin",
    "drawn",
)
COOL = ("left-to-right", "entropy")
TAUS = (0.5, 0.7, 0.9, 0.95)
# From the left, along with what is surer than that.
SURE = (0.9, 0.97, 0.99)
BOUNDS = (0.02, 0.1, 0.5, 2.0)
ORACLE_STEPS = (8, 32, 128)
LAST_STEPS = 256  # of the T-step bounds


def ways():
    """What is measured.

    Returns
    -------
    list of (writer, way, steps, options)
        The options are those of `unmasking.unmask`; orders that decide by
        themselves how many tokens they reveal take at most so many steps.
    """
    found = [(order, n, {"order": order}) for order in QUOTAS for n in STEPS]
    found += [("ancestral", n, {"order": "ancestral"}) for n in MORE_STEPS]
    found.append(("first-hitting", 64, {"order": "first-hitting"}))
    blocks = {"order": "entropy", "block_length": 16}
    found += [("entropy in blocks of 16", n, blocks) for n in STEPS]
    for stagger in (1.0, 4.0):
        ahead = {"order": "ancestral", "stagger": stagger}
        found += [(f"stagger {stagger:g}", n, ahead) for n in STEPS]
    for order in COOL:
        cool = {"order": order, "temperature": 0.7}
        found += [(f"{order} at 0.7", n, cool) for n in STEPS]
    for tau in TAUS:
        kind = {"order": "threshold", "tau": tau}
        found.append((f"threshold {tau:g}", 64, kind))
    for tau in SURE:
        kind = {"order": "left-to-right", "tau": tau}
        found.append((f"left-to-right, sure {tau:g}", 64, kind))
    for heat in (0.9, 0.8):
        cool = {"order": "left-to-right", "tau": SURE[-1], "temperature": heat}
        found.append((f"left-to-right, sure at {heat:g}", 64, cool))
    for bound in BOUNDS:
        kind = {"order": "entropy-bound", "bound": bound}
        found.append((f"entropy bound {bound:g}", 64, kind))
    for how in ("cap", "conf"):
        again = {"order": "ancestral", "remask": how}
        found += [(f"remasking, {how}", n, again) for n in (64, 32)]
    rows_ = [(WRITER, *way) for way in found]
    plain = {"order": "ancestral"}
    rows_ += [(ORACLE, "ancestral", n, plain) for n in ORACLE_STEPS]
    again = {"order": "ancestral", "remask": "cap"}
    return [*rows_, (ORACLE, "remasking, cap", 32, again)]


def denoiser(writer, data):
    """The callable that answers canvases, its mask and its device."""
    if writer == ORACLE:
        tokenizer = resources.load_tokenizer()
        oracle = conditionals.Oracle(tokenizer, common.SEQ_LEN, slip=1e-3)
        return oracle, oracle.mask_id, "cpu"
    place = common.ingredient(data, writer)
    model = resources.load_weights(masked.MaskedDenoiser, place)
    device = resources.device()
    return model.to(device), model.config.mask_id, device


def write(writer, data, texts, steps, options, batch_size=100):
    """Let it write.

    Returns
    -------
    texts : list of str
    nfe : float
        Evaluations of the network, a text in the mean.
    """
    tokenizer = resources.load_tokenizer()
    denoise, mask_id, device = denoiser(writer, data)
    generator = torch.Generator().manual_seed(0)
    if options["order"] == "first-hitting":
        steps = None
    told, nfe = [], 0
    for start in range(0, texts, batch_size):
        size = min(batch_size, texts - start)
        canvas = torch.full((size, common.SEQ_LEN), mask_id, device=device)
        course = unmasking.unmask(
            denoise,
            canvas,
            mask_id,
            num_steps=steps,
            generator=generator,
            **options,
        )
        told += text.decode_batch(course.ids, tokenizer)
        nfe += course.nfe.sum().item()
    return told, nfe / texts


def asked(writer, data, **settings):
    """What decides a result, the writer's weights among it."""
    if writer == ORACLE:
        return settings
    file = common.ingredient(data, writer) / "model.safetensors"
    return settings | {"weights": resources.sha256(file)}


def point(folder, data, writer, way, num_steps, options, texts):
    """One point, unless it is there already."""

    def make():
        judge, real = common.judge()
        start = time.perf_counter()
        told, nfe = write(writer, data, texts, num_steps, options)
        row = {"writer": writer, "way": way, "num_steps": num_steps}
        row |= {"temperature": 1.0} | options | {"nfe": round(nfe, 2)}
        row["seconds"] = round(time.perf_counter() - start, 1)
        row["device"] = resources.device_name()
        row |= evaluation.measured(judge, told, real=real)
        print(writer, way, num_steps, row["coherent"], flush=True)
        return row

    settings = {"sampler": options, "texts": texts}
    name = f"{writer}-{way}-{num_steps}"
    run = ablation.Run(name, asked(writer, data, **settings))
    return ablation.result(run, make, folder)


def floor(folder, data, writer, texts):
    """The T-step bounds above the exact value, unless they are there.

    Returns
    -------
    list of dict
        ``num_steps`` is None for the bound in continuous time.
    """

    def make():
        denoise, mask_id, device = denoiser(writer, data)
        tokenizer = resources.load_tokenizer()
        tales = text.load("tales", size=1, valid_size=texts).valid
        ids, _ = text.encode_batch(tales, tokenizer, common.SEQ_LEN)
        exact = likelihood.exact(tales)
        table = likelihood.count_nats(denoise, ids.to(device), mask_id)
        steps = (*range(1, LAST_STEPS + 1), math.inf)
        rows = []
        for T, nats in likelihood.step_bounds(table, steps).items():
            above = nats.minus(exact)
            row = {"writer": writer, "num_steps": None if T == math.inf else T}
            row["above"] = round(above.mean, 4)
            row["error"] = round(above.error, 4)
            rows.append(row | {"texts": texts})
        print(writer, "floor", rows[0], rows[-1], flush=True)
        return rows

    settings = asked(writer, data, texts=texts, steps=LAST_STEPS)
    run = ablation.Run(f"floor-{writer}", settings)
    return ablation.result(run, make, folder)


def make(folder, data, work, jobs=1, texts=300, oracle_texts=100):
    """Measure all points, and both floors."""
    sizes = {WRITER: texts, ORACLE: oracle_texts}
    floors = [
        (work / "points", data, writer, size) for writer, size in sizes.items()
    ]
    common.side_by_side(floor, floors, jobs)
    tasks = [(work / "points", data, *way, sizes[way[0]]) for way in ways()]
    common.side_by_side(point, tasks, jobs)
    rows = [point(*task) for task in tasks]
    common.write_rows(folder / "orders.json", rows)
    common.write_rows(
        folder / "floor.json", [row for task in floors for row in floor(*task)]
    )
    return {
        "points": len(rows),
        "texts": texts,
        "device": " and ".join(sorted({row["device"] for row in rows})),
        "seconds_of_sampling": round(sum(row["seconds"] for row in rows)),
    }
