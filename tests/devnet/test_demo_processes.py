"""The demo's processes, each test in a process of its own, because the demo kills all remaining children."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

PRELUDE = """
    import signal, sys, trio
    from pathlib import Path
    from hypha_devnet.demo import processes as demo_processes
    from hypha_devnet.demo.processes import ProcessDiedError, open_processes

    demo_processes._STOP_S = 0.5
    events = []
    def processes():
        return open_processes(Path(sys.argv[1]), {}, lambda *event: events.append(event), ["worker"])
"""


def run(tmp_path, script):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(script), tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_events_are_passed_on_and_other_lines_are_logged(tmp_path):
    output = run(
        tmp_path,
        """
        CODE = '''if True:
            import sys
            print('{"event": "told", "what": "' + input() + '"}', flush=True)
            print("no event", flush=True)
            print('{"event": 1}')
            print("warning", file=sys.stderr)
        '''
        async def main():
            async with processes() as running:
                process = await running.start("talker", ["-c", CODE], talks=True)
                await process.send_line("hello")
                print(await process.ended())
                await trio.sleep(0.1)
        trio.run(main)
        print(events)
        """,
    )
    assert output.splitlines() == ["0", "[('talker', {'event': 'told', 'what': 'hello'})]"]
    assert sorted((tmp_path / "talker.log").read_text().splitlines()) == ["no event", "warning", '{"event": 1}']


def test_an_unexpected_end_names_the_process_and_its_last_lines(tmp_path):
    output = run(
        tmp_path,
        """
        CODE = "import sys; print('out of paper', file=sys.stderr); sys.exit(3)"
        async def main():
            async with processes() as running:
                await running.start("worker", ["-c", CODE])
                await trio.sleep_forever()
        try:
            trio.run(main)
        except* ProcessDiedError as group:
            print(group.exceptions[0])
        """,
    )
    assert output.startswith("worker ended with status 3.")
    assert "worker.log" in output
    assert output.endswith("out of paper\n")


@pytest.mark.parametrize("how", ["by the end", "by an error", "in a hurry"])
def test_processes_that_ignore_sigterm_are_killed_with_their_children(tmp_path, how):
    began = time.monotonic()
    output = run(
        tmp_path,
        f"""
        HOW = {how!r}
        if HOW == "in a hurry":
            demo_processes._STOP_S = 1000
        STUBBORN = '''if True:
            import json, os, signal, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            grandchild = os.fork()
            if not grandchild:
                os.setsid()
                orphan = os.fork()
                if orphan:
                    print(json.dumps({{"event": "pids", "orphan": orphan, "child": os.getppid(),
                                      "grandchild": os.getpid()}}), flush=True)
                    os._exit(0)
            while True:
                time.sleep(1000)
        '''
        async def main():
            async with processes() as running:
                await running.start("worker", ["-c", STUBBORN])
                while not events:
                    await trio.sleep(0.01)
                if HOW == "by an error":
                    raise ValueError
                if HOW == "in a hurry":
                    running.hurry()
        try:
            trio.run(main)
        except* ValueError:
            pass
        print(*(events[0][1][key] for key in ("child", "orphan")))
        """,
    )
    pids = output.split()
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)
    assert time.monotonic() - began < 30


def test_workers_end_before_the_others(tmp_path):
    output = run(
        tmp_path,
        """
        CODE = '''if True:
            import signal, sys, time
            def end(*_):
                print('{"event": "ended"}', flush=True)
                sys.exit()
            signal.signal(signal.SIGTERM, end)
            print('{"event": "ready"}', flush=True)
            while True:
                time.sleep(1000)
        '''
        async def main():
            async with processes() as running:
                for name in ("scheduler", "worker"):
                    await running.start(name, ["-c", CODE])
                while len(events) < 2:
                    await trio.sleep(0.01)
        order = []
        stop = demo_processes.Processes.stop
        async def recorded(self, names=None):
            order.append([process.name for process in self._running if names is None or process.name in names])
            await stop(self, names)
        demo_processes.Processes.stop = recorded
        trio.run(main)
        print(order)
        """,
    )
    assert output.strip() == "[['worker'], ['scheduler']]"
