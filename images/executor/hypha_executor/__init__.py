"""The SDK for executors: programs that run one job of a worker and communicate only with the job's bridge.

None of these modules depends on a particular executor:

- `arguments`: the command line that every executor takes.
- `job`: the job specification.
- `bridge`: fetch files, send files, report progress.
- `incoming`: the files that peers push.
- `progress`: the values of the progress protocol and their answers, which occur only in this module.
- `safetensors`, `labels`: the files that executors exchange.
- `telemetry`, `resources`: spans and metrics of the executor, and what its container uses.
- `restart`: starts an executor again after a crash.
- `errors`: the errors that end an executor, and its exit codes.
"""
