"""Runs trainer configs and checks in forks of one process, so that torch and transformers are imported once.

With the argument `deepspeed` that is imported as well. Reads one JSON object a line: {"config": PATH} trains as
`python -m fl_trainers PATH` does, with "ranks" in as many processes, as torchrun starts them; {"check": NAME, "arguments": [...]} calls
a function of trainer_checks.py, or of another file by MODULE.NAME. Answers with one line: {"code", "output", "result"}.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any


def warm(deepspeed: bool) -> None:
    os.environ["TQDM_DISABLE"] = "1"
    import torch

    from fl_trainers import lean
    from fl_trainers.config import Config, Data, Method, Model, Run, Training

    torch.set_num_threads(1)
    run = Run(name="warm", lane="cpu", stack="none", events="/dev/null")
    model = Model(name="builtin/tiny-llama", path="builtin/tiny-llama", kind="tiny")
    training = Training(output_dir="/", arguments={"deepspeed": {"zero_optimization": {}}} if deepspeed else {})
    lean.hide(Config(run=run, model=model, data=Data(), method=Method(), training=training))
    if deepspeed:
        import deepspeed as _  # noqa: F401
    import peft  # noqa: F401
    from transformers import LlamaForCausalLM, Qwen3ForCausalLM  # noqa: F401

    import fl_trainers.loop
    import fl_trainers.session  # noqa: F401


def child(request: dict[str, Any], output: str, result: str) -> None:
    with Path(output).open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    code = 1
    try:
        if "config" in request:
            from fl_trainers.__main__ import finish, main

            finish(main([request["config"]]))
        else:
            module, _, name = request["check"].rpartition(".")
            made = getattr(importlib.import_module(module or "trainer_checks"), name)(*request["arguments"])
            Path(result).write_text(json.dumps(made))
            code = 0
    except BaseException:  # noqa: BLE001 - the parent tells
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(request: dict[str, Any], output: str, result: str) -> int:
    """In a fork, or in one a rank. The first rank that fails ends the others, which would wait for it."""
    ranks, port = request.get("ranks", 1), free_port()
    processes = {}
    for rank in range(ranks):
        process = os.fork()
        if process == 0:
            if ranks > 1:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
                                  MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
            child(request, output if rank == 0 else f"{output}.{rank}", result)
        processes[process] = rank
    code = 0
    while processes:
        process, status = os.wait()
        rank = processes.pop(process)
        if code == 0 and (code := os.waitstatus_to_exitcode(status)) != 0:
            for other in processes:
                os.kill(other, signal.SIGKILL)
            if rank:
                Path(output).write_text(Path(output).read_text() + Path(f"{output}.{rank}").read_text())
    return code


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries greet on the standard output
    warm("deepspeed" in sys.argv)
    with tempfile.TemporaryDirectory() as folder:
        for number, line in enumerate(sys.stdin):
            output, result = f"{folder}/{number}.txt", f"{folder}/{number}.json"
            code = run(json.loads(line), output, result)
            made = json.loads(Path(result).read_text()) if Path(result).exists() else None
            answer = {"code": code, "output": Path(output).read_text(errors="replace"), "result": made}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    serve()
