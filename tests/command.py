"""Running ``dblm`` in this process, for tests of the command line."""

from dblm_lib import cli

# What a quick run needs; the examples of the help texts get it too.
QUICK = ["--steps", "3", "--batch-size", "4", "--seq-len", "16"]
# The same of Part I's model, which is trained in one part.
PROPOSAL = ["--recipe", "proposal", *QUICK]
# And of the one that fills masks.
MASKED = ["--noise", "mask", *QUICK]


def run(capsys, *arguments):
    """Run ``dblm`` in this process; return exit code, output, errors."""
    try:
        code = cli.main([str(a) for a in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def mistake(capsys, *arguments, code=2):
    """Run a command that must fail; return its message, one line long."""
    found, _, error = run(capsys, *arguments)
    assert found == code, error
    message = error.rstrip().splitlines()[-1]
    assert message.startswith("dblm"), message
    return message
