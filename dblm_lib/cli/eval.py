"""``dblm eval``: the figures of what a model writes."""

import json
import sys
import time

from .. import resources
from .models import any_model
from .printing import printable

__all__ = ["run"]

# What is printed of a report: name, words, and how the number is written.
_FIGURES = (
    ("coherent", "hold together", "share"),
    ("distinct", "differ from each other", "share"),
    ("copied", "copied from the training text", "share"),
    ("slot_distance", "choices unlike the grammar's", "number"),
    ("above_true", "the same, above true tales", "signed"),
    ("grammar_nats", "nats a tale, by the grammar", "number"),
    ("judge", "nats a token, by the judge", "number"),
    ("above_real", "the same, above real tales", "signed"),
    ("entropy", "entropy of single tokens, nats", "number"),
    ("distinct_2", "different pairs of tokens", "share"),
    ("repeats", "tokens like their left neighbour", "share"),
    ("tokens", "tokens a text", "number"),
    ("nfe", "evaluations a text", "number"),
)
# The same of what a masked model gives to tales.
_NATS = (
    ("exact_nats_of_these", "exact, by the grammar", "number"),
    ("bound_nats_per_tale", "bound of the model", "number"),
    ("bound_above_exact", "the bound, above exact", "signed"),
    ("left_to_right_above_exact", "from left to right, above exact", "signed"),
)
_CLOCK = "texts at once", "written in", "here", "left to right", "ratio"
_WRITTEN = {"share": "{:.1%}", "number": "{:.3f}", "signed": "{:+.3f}"}
_TITLES = {
    "beginnings": "beginnings of held-out tales, continued",
    "prompts": "texts behind the proposal's prompts, which begin no tale:\n"
    "only what follows is measured, put behind an opening of the grammar",
    "left to right": "texts, written from left to right",
    "real tales": "held-out tales, for comparison",
}


def run(options):
    """Let a model write, measure it, and print the figures."""
    from .. import evaluation, speed

    start = time.perf_counter()
    model, tokenizer = any_model(options.name)
    model.to(resources.device())
    steps = options.steps or evaluation.steps_of(model)
    steps = list(dict.fromkeys(steps))
    samples = options.samples or evaluation.affordable(
        model, tokenizer, steps, options.continued
    )
    if samples < (options.samples or evaluation.SAMPLES):
        print(
            f"{samples} texts for each number of steps: more would take this "
            f"machine over five minutes (--samples {evaluation.SAMPLES} for "
            "all).",
            file=sys.stderr,
        )
    found = evaluation.evaluate(
        model,
        tokenizer,
        samples=samples,
        steps=steps,
        seed=options.seed,
        continued=options.continued,
        progress=sys.stderr.isatty(),
    )
    twin = resources.load_backbone(evaluation.JUDGE).model
    twin.to(resources.device())
    clock = speed.rates(model, twin, tokenizer, steps)
    recorded = _recorded(options.name)
    facts = {
        "name": options.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "judge": evaluation.JUDGE,
        "seconds": round(time.perf_counter() - start, 1),
    }
    differing = evaluation.differing(found, recorded)
    if options.json:
        facts |= {"evaluation": found, "manifest": recorded}
        facts["clock"] = clock
        print(json.dumps(facts | {"differing": differing}, indent=1))
        return
    print(
        f"{printable(facts['name'])}: {facts['parameters']:,} parameters, judged by "
        f"{facts['judge']}; {facts['seconds']:.0f} s in all"
    )
    for title, report in found.items():
        if title == evaluation.NATS:
            _print_nats(report, recorded.get(title, {}))
            continue
        beside = dict(recorded.get(title, {}))
        if beside.get("texts") != report["texts"]:
            for figure in evaluation.COUNTED:
                beside.pop(figure, None)
        _print_report(title, report, beside)
    _print_clock(clock)
    _print_differing(differing, found, recorded)


def _recorded(name):
    """The evaluation of a model that MANIFEST.json holds; may be empty."""
    record = resources.manifest()["artifacts"].get(str(name), {})
    return record.get("metrics", {}).get("evaluation", {})


def _print_report(title, report, recorded):
    words = _TITLES.get(title, f"texts, written in {title}")
    seconds = f" ({report['seconds']:.0f} s)" if "seconds" in report else ""
    print(f"\n{report['texts']:,} {words}{seconds}")
    _print_figures(_FIGURES, report, recorded)
    broken = ", ".join(f"{k} {n}" for k, n in report["broken"].items())
    if broken:
        print(f"  first broken: {broken}")


def _print_nats(report, recorded):
    """Print what a masked model gives to tales, beside the truth."""
    left = report.get("left_to_right_texts")
    print(
        f"\nnats a tale, of {report['texts']:,} held-out tales"
        + (f" (from left to right: {left})" if left else "")
    )
    _print_figures(_NATS, report, recorded)
    print(f"  the bound is {report['bound_above_exact_percent']:.1f} % above")


def _print_figures(figures, report, recorded):
    """Print rows of a report, with their intervals where they have one."""
    heads = "", "here", "95 % interval", "MANIFEST" if recorded else ""
    print("  {:32}  {:>8}  {:>18}  {:>8}".format(*heads).rstrip())
    for name, label, kind in figures:
        if name not in report:
            continue
        written = _WRITTEN[kind].format
        there = written(recorded[name]) if name in recorded else ""
        ends = " to ".join(map(written, report.get(f"{name}_interval", ())))
        print(
            f"  {label:32}  {written(report[name]):>8}  {ends:>18}  "
            f"{there:>8}".rstrip()
        )


def _print_clock(rows):
    """Print how long a text takes, beside the judge that writes itself."""
    print("\nmilliseconds a text, on this machine and in turns")
    print("  {:>14}  {:16}{:>8}  {:>14}  {:>7}".format(*_CLOCK))
    for row in rows:
        print(
            f"  {row['batch_size']:>14}  {row['way']:16}"
            f"{row['milliseconds']:>8.1f}  {row['twin']:>14.1f}  "
            f"{row['times_twin']:>7.2f}"
        )


def _print_differing(differing, found, recorded):
    """Say whether the figures are those of MANIFEST.json."""
    if not set(found) & set(recorded):
        return
    if differing:
        print("\nBeyond sampling error of MANIFEST.json (3 standard errors):")
        print("\n".join(f"  {name}" for name in differing))
    else:
        print("\nAll figures equal MANIFEST.json within sampling error.")
