"""``python -m sige.runs`` in processes that are forked from one: torch, pandas and Hydra are imported there once, two seconds.

Each of them imports the project anew and ends as a process of its own does. As a script this file is the one they are forked
from: on standard input a JSON line for each, of its arguments; on standard output its exit code and what it printed.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile


class CommandLine:
    """``call(argument, ...)`` runs the command; ``close`` ends the process behind it."""

    def __init__(self, cwd, said):
        """said: a file for what the imports print on standard error, which every command would have printed."""
        self.said = said
        with open(said, "w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "COLUMNS": "160"},
            )

    def call(self, *arguments):
        print(json.dumps(arguments), file=self.process.stdin, flush=True)
        code, printed, complained = json.loads(self.process.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, printed, self.said.read_text() + complained)

    def close(self):
        self.process.communicate()


def main():
    import hydra  # noqa: F401
    import pandas  # noqa: F401
    import torch  # noqa: F401

    while line := sys.stdin.readline():
        with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as complained:
            child = os.fork()
            if not child:
                for number, file in enumerate((open(os.devnull), printed, complained)):
                    os.dup2(file.fileno(), number)
                sys.argv = ["sige.runs", *json.loads(line)]
                runpy.run_module("sige.runs", run_name="__main__", alter_sys=True)
                return
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said = [file.seek(0) or file.read() for file in (printed, complained)]
        print(json.dumps([code, *said]), flush=True)


if __name__ == "__main__":
    main()
