"""Runs trainer configs and checks in forks of one process, so that torch and transformers are imported once.

Reads one JSON object a line: {"config": PATH} trains as `python -m fl_trainers PATH` does; {"check": NAME, "arguments": [...]} calls
a function of trainer_checks.py. Answers with one line: {"code", "output", "result"}.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any


def warm() -> None:
    os.environ["TQDM_DISABLE"] = "1"
    import torch

    from fl_trainers import lean
    from fl_trainers.config import Config, Data, Method, Model, Run, Training

    torch.set_num_threads(1)
    run = Run(name="warm", lane="cpu", stack="none", events="/dev/null")
    model = Model(name="builtin/tiny-llama", path="builtin/tiny-llama", kind="tiny")
    lean.hide(Config(run=run, model=model, data=Data(), method=Method(), training=Training(output_dir="/")))
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
            from fl_trainers.__main__ import main

            code = main([request["config"]])
        else:
            import trainer_checks

            made = getattr(trainer_checks, request["check"])(*request["arguments"])
            Path(result).write_text(json.dumps(made))
            code = 0
    except BaseException:  # noqa: BLE001 - the parent tells
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    warm()
    with tempfile.TemporaryDirectory() as folder:
        for number, line in enumerate(sys.stdin):
            output, result = f"{folder}/{number}.txt", f"{folder}/{number}.json"
            process = os.fork()
            if process == 0:
                child(json.loads(line), output, result)
            _, status = os.waitpid(process, 0)
            made = json.loads(Path(result).read_text()) if Path(result).exists() else None
            answer = {"code": os.waitstatus_to_exitcode(status), "output": Path(output).read_text(errors="replace"), "result": made}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    serve()
