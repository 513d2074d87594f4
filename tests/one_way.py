"""A forward that reads from top to bottom: no loop, no branch but a field's."""

import ast
import inspect
import textwrap


def branches(kind):
    """Count the branches of a model's forward; each asks its configuration.

    Parameters
    ----------
    kind : type
        Of the model, with a ``config_class``.
    """
    source = textwrap.dedent(inspect.getsource(kind.forward))
    fields = set(inspect.signature(kind.config_class).parameters)
    count = 0
    for node in ast.walk(ast.parse(source)):
        loop = (ast.For, ast.While, ast.IfExp, ast.Match, ast.Try, ast.Lambda)
        assert not isinstance(node, loop), ast.unparse(node)
        if isinstance(node, ast.If):
            count += 1
            asked = [
                n for n in ast.walk(node.test) if isinstance(n, ast.Attribute)
            ]
            names = {n.id for n in ast.walk(node.test) if hasattr(n, "id")}
            assert names == {"config"}, ast.unparse(node.test)
            assert asked and {n.attr for n in asked} <= fields
    return count
