"""A figure that a kernel draws anew (ipywidgets)."""


def live(function, **controls):
    """Call a function again whenever the reader moves a control.

    Parameters
    ----------
    function : callable
        Draws or prints; takes the controls by name.
    **controls
        As in ``ipywidgets.interact``: a pair or triple of numbers is a
        slider ``(low, high[, step])``, a list or dict a menu, a bool a box,
        a string a line of text, and a widget itself.

    Notes
    -----
    Needs a kernel: Jupyter or Colab. A slider calls the function when it
    is let go, since the functions of this book may take a second. Where
    ipywidgets is missing, a line says so and nothing is raised.
    """
    if not callable(function):
        raise TypeError(
            f"live needs a function first, got {type(function).__name__}"
        )
    if not controls:
        raise ValueError("live needs a control, for instance t=(0.0, 1.0)")
    try:
        from IPython.display import display
        from ipywidgets import interactive
    except ImportError:
        print(
            "This control needs ipywidgets: run `pip install ipywidgets` "
            "and restart the kernel. The figure above works without."
        )
        return
    box = interactive(function, **controls)
    for child in box.children:
        if hasattr(child, "continuous_update"):
            child.continuous_update = False
    display(box)
