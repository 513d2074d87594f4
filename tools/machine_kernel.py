"""What `tools/machines.py` puts into the kernels of the notebooks.

As asked, it says of the processor whether it computes in bf16, makes sums
less exact than any processor does, and writes down how far each numeric
comparison in an `assert` was from failing. The notebooks stay as they are:
IPython hands each cell's syntax tree to `Asserts` before the cell is run.

The distance to failing of ``a < b`` is ``b - a``: above zero while the
assertion holds. Of a tensor it is the smallest of all elements, or the
largest under ``.any()`` and ``any(...)``. Of two values that should be close
it is the share of the tolerance that is left: 1 where they are equal, 0
where they are as far apart as allowed.
"""

import ast
import json
import os
import threading

BF16, ROUGH, RECORD = "MACHINES_BF16", "MACHINES_ROUGH", "MACHINES_RECORD"
ORDERED = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
CLOSE = {
    # name: (relative, absolute tolerance) unless the call says otherwise
    "torch.allclose": (1e-5, 1e-8),
    "np.allclose": (1e-5, 1e-8),
    "math.isclose": (1e-9, 0.0),
    "torch.testing.assert_close": (1.3e-6, 1e-5),
}


def comparisons(statement):
    """List the numeric comparisons of a statement: (node, kind, sign).

    Parameters
    ----------
    statement : ast.Assert or ast.Expr
        An expression counts if it is a call of `torch.testing.assert_close`.

    Returns
    -------
    list of tuples
        The node; ``"all"``, ``"any"`` or ``"close"``; and -1 where the
        assertion wants the comparison to fail, else 1.
    """
    found = []

    def walk(node, kind, sign):
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            walk(node.operand, kind, -sign)
        elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            for value in node.values:
                walk(value, kind, sign)
        elif isinstance(node, ast.Compare):
            if all(type(op) in ORDERED for op in node.ops):
                found.append((node, kind, sign))
        elif isinstance(node, (ast.GeneratorExp, ast.ListComp)):
            walk(node.elt, kind, sign)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CLOSE:
                found.append((node, "close", sign))
            elif name in ("all", "any") and node.args:
                walk(node.args[0], name, sign)
            elif isinstance(node.func, ast.Attribute) and (
                node.func.attr in ("all", "any")
            ):
                walk(node.func.value, node.func.attr, sign)

    if isinstance(statement, ast.Assert):
        walk(statement.test, "all", 1)
    elif isinstance(statement.value, ast.Call):
        called = ast.unparse(statement.value.func)
        if called == "torch.testing.assert_close":
            walk(statement.value, "close", 1)
    return found


def named(statement, node):
    """Name a comparison by its text; a condition in an `all` by that."""
    text = " ".join(ast.unparse(node).split())
    whole = ast.unparse(
        statement.test if isinstance(statement, ast.Assert) else statement
    )
    whole = " ".join(whole.split())
    return text if text == whole else f"{text}  [in: {whole}]"


class Asserts(ast.NodeTransformer):
    """Rewrites the assertions of a cell so that they write down distances."""

    def __init__(self):
        self.names = set()

    def _instrumented(self, statement):
        chosen = {
            id(node): (named(statement, node), kind, sign)
            for node, kind, sign in comparisons(statement)
        }

        class Wrap(ast.NodeTransformer):
            def visit(self, node):
                node = self.generic_visit(node)
                if id(node) not in chosen:
                    return node
                if isinstance(node, ast.Call):
                    return _wrapped_call(node, *chosen[id(node)])
                return _wrapped_comparison(node, *chosen[id(node)])

        self.names |= {name for name, _, _ in chosen.values()}
        return ast.fix_missing_locations(
            ast.copy_location(Wrap().visit(statement), statement)
        )

    visit_Assert = visit_Expr = _instrumented


def _call(function, *arguments):
    return ast.Call(ast.Name(function, ast.Load()), [*arguments], [])


def _wrapped_comparison(node, name, kind, sign):
    """Turn ``a < b <= c`` into ``__compare__(name, kind, sign, ops, ...)``."""
    kinds = [ORDERED[type(op)] for op in node.ops]
    texts = [ast.Constant(v) for v in (name, kind, sign, tuple(kinds))]
    return _call("__compare__", *texts, node.left, *node.comparators)


def _wrapped_call(node, name, kind, sign):
    """Let a look at the arguments of a call come before it."""
    texts = [ast.Constant(v) for v in (name, sign, ast.unparse(node.func))]
    return ast.Call(
        ast.Name("__close__", ast.Load()),
        [*texts, node.func, *node.args],
        node.keywords,
    )


# --- in the kernel ----------------------------------------------------------


def signed_distance(op, left, right, kind="all"):
    """How far a comparison is from failing; a float, or None if no number."""
    import numpy as np

    left, right = (
        np.asarray(
            side.detach().cpu() if hasattr(side, "detach") else side,
            dtype=np.float64,
        )
        for side in (left, right)
    )
    gap = right - left if op in ("<", "<=") else left - right
    return float(gap.max() if kind == "any" else gap.min())


def closeness(left, right, relative, absolute):
    """Share of the tolerance that is left between two values."""
    import numpy as np

    left, right = (
        np.asarray(
            side.detach().cpu() if hasattr(side, "detach") else side,
            dtype=np.float64,
        )
        for side in (left, right)
    )
    allowed = absolute + relative * np.abs(right)
    apart = np.abs(left - right)
    with np.errstate(divide="ignore", invalid="ignore"):
        used = np.where(apart > 0, apart / allowed, 0.0)
    return 1 - float(used.max())


class Record:
    """Distances to failing by the name of the comparison, the smallest."""

    def __init__(self, path):
        self.path, self.found = path, {}
        self.lock = threading.Lock()

    def note(self, name, distance, kind="all"):
        """Keep a distance if it is the smallest (with "any": the largest)."""
        best = max if kind == "any" else min
        with self.lock:
            old = self.found.get(name, distance)
            self.found[name] = best(old, distance)

    def compare(self, name, kind, sign, ops, *values):
        """What the comparison itself gives, its distance written down."""
        import operator

        does = {
            "<": operator.lt,
            "<=": operator.le,
            ">": operator.gt,
            ">=": operator.ge,
        }
        result = True
        for op, left, right in zip(ops, values, values[1:]):
            try:
                distance = signed_distance(op, left, right, kind)
            except (TypeError, ValueError):
                pass  # not numbers
            else:
                self.note(name, sign * distance, kind)
            result = does[op](left, right)
            if len(ops) > 1 and not result:
                return result
        return result

    def close(self, name, sign, called, function, left, right, **options):
        """What the call itself gives, its distance written down."""
        relative, absolute = CLOSE[called]
        relative = options.get("rtol", options.get("rel_tol", relative))
        absolute = options.get("atol", options.get("abs_tol", absolute))
        try:
            distance = closeness(left, right, relative, absolute)
        except (TypeError, ValueError):
            pass
        else:
            self.note(name, sign * distance)
        return function(left, right, **options)

    def write(self, *_):
        """Store what was found so far."""
        text = json.dumps(self.found, indent=1, ensure_ascii=False)
        with open(self.path, "w", encoding="utf-8") as file:
            file.write(text)


def roughen(size):
    """Change all products of matrices by up to ``size`` of their value.

    Only those of single precision, in which sums in another order differ by
    about 1e-7. The change follows from the value alone, so that what is
    computed twice in the same way is still the same.
    """
    import functools

    import torch

    def rough(function):
        @functools.wraps(function)
        def changed(*arguments, **options):
            out = function(*arguments, **options)
            if out.dtype != torch.float32:
                return out
            wave = torch.sin(1e5 * out.detach())
            return out + size * wave * out

        return changed

    owners = (
        (torch, ("addmm", "matmul", "einsum", "bmm")),
        (torch.Tensor, ("__matmul__", "matmul")),
        (
            torch.nn.functional,
            ("linear", "scaled_dot_product_attention", "layer_norm"),
        ),
    )
    for owner, names in owners:
        for name in names:
            setattr(owner, name, rough(getattr(owner, name)))


def begin(shell):
    """Prepare a kernel, as the environment asks."""
    bf16 = os.environ.get(BF16)
    if bf16:
        import torch

        for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
            setattr(torch.cpu, name, lambda: bf16 == "on")
    size = float(os.environ.get(ROUGH, "0"))
    if size:
        roughen(size)
    path = os.environ.get(RECORD)
    if path:
        record = Record(path)
        shell.user_ns["__compare__"] = record.compare
        shell.user_ns["__close__"] = record.close
        shell.ast_transformers.append(Asserts())
        shell.events.register("post_run_cell", record.write)
