"""The SDK for executors: programs that run one job of a worker and talk to nobody but the job's bridge.

An executor needs these modules, of which none knows another executor:

- `arguments`: the command line that every executor takes.
- `job`: the job specification.
- `bridge`: fetch files, send files, report progress.
- `incoming`: the files that peers push.
- `progress`: the values of the DiLoCo progress protocol and their answers. Only this module knows them.
- `safetensors`, `labels`: the files that executors exchange.
- `errors`: what can end an executor, and its exit code.
"""
