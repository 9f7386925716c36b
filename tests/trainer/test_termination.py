"""SIGTERM ends the trainer with its own exit code, whatever it does at that moment."""

import subprocess
import sys

PROGRAM = """
import io, os, signal, sys
from pathlib import Path
from hypha_trainer.log import log
from hypha_trainer.program import end_with, exit_code_of

class Interrupted(io.RawIOBase):
    interrupted = False
    def writable(self):
        return True
    def write(self, data):
        if not self.interrupted:
            self.interrupted = True
            os.kill(os.getpid(), signal.SIGTERM)
        return os.write(1, data)

def run_job():
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(Interrupted()))
    log("a line")
    return 0

end_with(lambda: exit_code_of(run_job, Path(".")))
"""


def test_a_trainer_may_be_terminated_while_it_writes_to_its_log() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 143, done.stderr
    assert done.stdout.splitlines()[-1].endswith("terminated")
